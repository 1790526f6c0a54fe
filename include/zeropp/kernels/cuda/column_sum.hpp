// SPDX-License-Identifier: Apache-2.0
// The gradient of a bias on a GPU: a block adds a strip of columns over a range of rows, then the ranges are added in
// order. Sizes and the number of multiprocessors alone decide the order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cuda/elementwise.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

namespace zeropp::kernels {

namespace detail {

inline constexpr int strip_rows = 8;                  ///< rows that a block reads side by side, one a warp
inline constexpr std::int64_t strip_bytes = 32 * 16;  ///< of a row that a block takes

/// partials: [ranges, width].
template <class X, class G>
void launch_column_sum(const X* x, compute_t<X>* partials, std::int64_t ranges, G* sum, std::int64_t n,
                       std::int64_t width, Into into, cudaStream_t stream);

#ifdef __CUDACC__

/// Block (strip, range): its warp w takes rows w, w + 8, ... of the range, four at a time.
template <int N, class X>
__global__ void __launch_bounds__(32 * strip_rows)
    column_sum_kernel(const X* x, compute_t<X>* partials, std::int64_t n, std::int64_t width) {
  using C = compute_t<X>;
  constexpr int M = static_cast<int>(strip_bytes / 32 / sizeof(X));  // columns of a lane: N at a time, 32 N apart
  constexpr int V = M / N;
  __shared__ C part[strip_rows][32 * M];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t strip = blockIdx.x * std::int64_t{32 * M};
  const std::int64_t begin = n * blockIdx.y / gridDim.y, end = n * (blockIdx.y + 1) / gridDim.y;
  C sum[V][N] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const std::int64_t column = strip + (v * 32 + lane) * N;
    if (column < width) {  // then all N columns are: the width is a multiple of N
      std::int64_t row = begin + warp;
      for (; row + 3 * strip_rows < end; row += 4 * strip_rows) {
        Lanes<X, N> rows[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) rows[j] = Lanes<X, N>::load(x + (row + j * strip_rows) * width + column);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int k = 0; k < N; ++k) sum[v][k] += rows[j][k];
      }
      for (; row < end; row += strip_rows) {
        const auto one = Lanes<X, N>::load(x + row * width + column);
#pragma unroll
        for (int k = 0; k < N; ++k) sum[v][k] += one[k];
      }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) part[warp][(v * 32 + lane) * N + k] = sum[v][k];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * M; i += 32 * strip_rows) {
    if (strip + i >= width) break;
    C total = 0;
#pragma unroll
    for (int w = 0; w < strip_rows; ++w) total += part[w][i];
    partials[blockIdx.y * width + strip + i] = total;
  }
}

template <class X, class G>
void launch_column_sum(const X* x, compute_t<X>* partials, std::int64_t ranges, G* sum, std::int64_t n,
                       std::int64_t width, Into into, cudaStream_t stream) {
  const auto strips = ceil_div(width, strip_bytes / static_cast<std::int64_t>(sizeof(X)));
  const dim3 grid(static_cast<unsigned>(strips), static_cast<unsigned>(ranges));
  constexpr int lanes = vector_lanes<X>;
  if (width % lanes == 0 && aligned_for<lanes>(x))
    column_sum_kernel<lanes><<<grid, 32 * strip_rows, 0, stream>>>(x, partials, n, width);
  else
    column_sum_kernel<1><<<grid, 32 * strip_rows, 0, stream>>>(x, partials, n, width);
  add_partials(stream, partials, ranges, width, width, sum, static_cast<G*>(nullptr), into);
}

#endif

}  // namespace detail

/// sum [width] = or += the rows of x [n, width].
template <CudaDevice D, class X, class G>
void column_sum(D& device, const X* x, G* sum, std::int64_t n, std::int64_t width, Into into = Into::add) {
  using C = compute_t<X>;
  if (n * width == 0) {
    if (into == Into::overwrite) fill(device, std::span<G>{sum, static_cast<std::size_t>(width)}, G{});
    return;
  }
  const auto count = static_cast<double>(n * width);
  const auto strips = ceil_div(width, detail::strip_bytes / static_cast<std::int64_t>(sizeof(X)));
  const auto ranges = std::clamp<std::int64_t>(device.properties().multiprocessors * std::int64_t{8} / strips, 1,
                                               ceil_div(n, 4 * detail::strip_rows));
  Tensor<C, 1> partials(device.pool(), {ranges * width}, Purpose::buffers);
  device.run({.name = "column sum", .flops = count, .bytes = count * sizeof(X)}, [&](cudaStream_t stream) {
    detail::launch_column_sum(x, partials.data(), ranges, sum, n, width, into, stream);
  });
}

}  // namespace zeropp::kernels
