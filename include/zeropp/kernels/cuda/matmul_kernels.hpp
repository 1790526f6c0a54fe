// SPDX-License-Identifier: Apache-2.0
// Kernels that complete products on GPUs where cuBLASLt has no algorithm: a plain product of any element types and
// layouts, and biases and GELU in a pass of their own. Right for every input, quick for none but the passes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/math.hpp>
#include <zeropp/kernels/gemm.hpp>

namespace zeropp::kernels::detail {

/// The function that a pass applies to one element: x [n, width] and bias [width] in, y [n, width] out.
enum class Pass {
  bias,           ///< y = x + bias
  gelu,           ///< y = gelu(x), the tanh form
  gelu_backward,  ///< y = gelu'(x) · y
  accumulate,     ///< y = y + x
};

/// c = onto + a · b + bias, computed in C; onto (with the rows of c) and bias may be null.
template <class C, class A, class B, class T, class Bias>
void launch_plain_product(MatrixView<const A> a, MatrixView<const B> b, MatrixView<T> c, const T* onto,
                          const Bias* bias, cudaStream_t stream);

/// A pass over n rows of y; x may be y. Rows lie `stride` elements apart in both.
template <Pass P, class X, class Bias, class Y>
void launch_pass(const X* x, const Bias* bias, Y* y, std::int64_t n, std::int64_t width, std::int64_t stride,
                 cudaStream_t stream);

#ifdef __CUDACC__

inline constexpr int product_tile = 16;

template <class T>
__device__ T entry(const MatrixView<const T>& m, std::int64_t r, std::int64_t c) {
  return m.transposed ? m.data[c * m.stride + r] : m.data[r * m.stride + c];
}

template <class C, class A, class B, class T, class Bias>
__global__ void __launch_bounds__(product_tile* product_tile)
    plain_product(MatrixView<const A> a, MatrixView<const B> b, MatrixView<T> c, const T* onto, const Bias* bias) {
  __shared__ C left[product_tile][product_tile + 1], right[product_tile][product_tile + 1];
  const std::int64_t across = ceil_div(c.columns, product_tile);
  const int ty = static_cast<int>(threadIdx.x) / product_tile, tx = static_cast<int>(threadIdx.x) % product_tile;
  const std::int64_t row = blockIdx.x / across * product_tile + ty, column = blockIdx.x % across * product_tile + tx;
  C sum = 0;
  for (std::int64_t p = 0; p < a.columns; p += product_tile) {
    left[ty][tx] = row < c.rows && p + tx < a.columns ? static_cast<C>(entry(a, row, p + tx)) : C{0};
    right[ty][tx] = p + ty < a.columns && column < c.columns ? static_cast<C>(entry(b, p + ty, column)) : C{0};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < product_tile; ++i) sum += left[ty][i] * right[i][tx];
    __syncthreads();
  }
  if (row >= c.rows || column >= c.columns) return;
  if (bias) sum += static_cast<C>(bias[column]);
  const std::int64_t at = row * c.stride + column;
  c.data[at] = static_cast<T>(onto ? static_cast<C>(onto[at]) + sum : sum);
}

template <class C, class A, class B, class T, class Bias>
void launch_plain_product(MatrixView<const A> a, MatrixView<const B> b, MatrixView<T> c, const T* onto,
                          const Bias* bias, cudaStream_t stream) {
  const auto blocks = ceil_div(c.rows, product_tile) * ceil_div(c.columns, product_tile);
  plain_product<C><<<static_cast<unsigned>(blocks), product_tile * product_tile, 0, stream>>>(a, b, c, onto, bias);
}

template <Pass P, class C>
__device__ C pass(C x, C bias, C y) {
  if constexpr (P == Pass::bias) return x + bias;
  if constexpr (P == Pass::accumulate) return y + x;
  if constexpr (P == Pass::gelu) return gelu(x);
  if constexpr (P == Pass::gelu_backward) return y * gelu_slope(x);
}

/// N neighbouring elements, moved together.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

/// Packs of N elements, `packs` to a row.
template <Pass P, int N, class X, class Bias, class Y>
__global__ void __launch_bounds__(256)
    pass_over(const X* x, const Bias* bias, Y* y, std::int64_t count, std::int64_t packs, std::int64_t stride) {
  using C = std::common_type_t<compute_t<X>, compute_t<Y>>;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const std::int64_t row = count == packs ? 0 : i / packs, column = (i - row * packs) * N, at = row * stride + column;
    const auto from = *reinterpret_cast<const Pack<X, N>*>(x + at);
    Pack<Y, N> to{};
    if constexpr (P == Pass::gelu_backward || P == Pass::accumulate) to = *reinterpret_cast<const Pack<Y, N>*>(y + at);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const C b = P == Pass::bias ? static_cast<C>(bias[column + j]) : C{0};
      to.at[j] = static_cast<Y>(pass<P, C>(static_cast<C>(from.at[j]), b, static_cast<C>(to.at[j])));
    }
    *reinterpret_cast<Pack<Y, N>*>(y + at) = to;
  }
}

template <Pass P, class X, class Bias, class Y>
void launch_pass(const X* x, const Bias* bias, Y* y, std::int64_t n, std::int64_t width, std::int64_t stride,
                 cudaStream_t stream) {
  if (n == 0 || width == 0) return;
  if (P != Pass::bias && stride == width) {  // one long row
    width *= n;
    stride = width;
    n = 1;
  }
  constexpr int wide = static_cast<int>(16 / std::max(sizeof(X), sizeof(Y)));
  const auto aligned = [](const auto* p) { return reinterpret_cast<std::uintptr_t>(p) % (wide * sizeof(*p)) == 0; };
  const bool vectors = width % wide == 0 && stride % wide == 0 && aligned(x) && aligned(y);
  const auto packs = vectors ? width / wide : width, count = n * packs;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(ceil_div(count, 256), 132 * 32));
  if (vectors)
    pass_over<P, wide><<<blocks, 256, 0, stream>>>(x, bias, y, count, packs, stride);
  else
    pass_over<P, 1><<<blocks, 256, 0, stream>>>(x, bias, y, count, packs, stride);
}

#endif

}  // namespace zeropp::kernels::detail
