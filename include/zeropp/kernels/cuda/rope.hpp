// SPDX-License-Identifier: Apache-2.0
// kernels/rope.hpp on a GPU. A block owns one position t and part of the batch: it computes the angles of t once, in
// double as the CPU does, and turns all heads by them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/vector.hpp>
#include <zeropp/kernels/rope.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

inline constexpr int rope_threads = 256;

template <int N, class T>
__global__ void __launch_bounds__(rope_threads)
    rope_kernel(T* x, std::int64_t stride, std::int64_t batch, std::int64_t sequence, int heads, int half, double base,
                int sign, Positions positions) {
  using C = compute_t<T>;
  extern __shared__ double angles[];
  C *cosine = reinterpret_cast<C*>(angles), *sine = cosine + half;
  const std::int64_t t = blockIdx.x;
  for (int i = threadIdx.x; i < half; i += rope_threads) {
    const double angle = static_cast<double>(positions[t]) * pow(base, -2.0 * i / (2.0 * half));
    double s, c;
    sincos(angle, &s, &c);
    cosine[i] = static_cast<C>(c);
    sine[i] = static_cast<C>(sign * s);
  }
  __syncthreads();
  const std::int64_t begin = batch * blockIdx.y / gridDim.y, end = batch * (blockIdx.y + 1) / gridDim.y;
  const unsigned per_head = static_cast<unsigned>(half / N), per_row = per_head * static_cast<unsigned>(heads);
  // A row has few vectors; threads share several rows.
  const std::int64_t items = (end - begin) * per_row;
  for (std::int64_t item = threadIdx.x; item < items; item += rope_threads) {
    const std::int64_t b = begin + item / per_row;
    const unsigned rest = static_cast<unsigned>(item % per_row), head = rest / per_head;
    const int i = static_cast<int>(rest % per_head) * N;
    T* at = x + (b * sequence + t) * stride + std::int64_t{2} * head * half + i;
    const auto u = Lanes<T, N>::load(at), v = Lanes<T, N>::load(at + half);
    C left[N], right[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      left[k] = u[k] * cosine[i + k] - v[k] * sine[i + k];
      right[k] = v[k] * cosine[i + k] + u[k] * sine[i + k];
    }
    Lanes<T, N>::of(left).store(at);
    Lanes<T, N>::of(right).store(at + half);
  }
}

}  // namespace detail

template <CudaDevice D, class T>
void rope(D& device, T* x, std::int64_t stride, std::int64_t batch, std::int64_t sequence, std::int64_t heads,
          std::int64_t head_size, double base, Turn turn, Positions positions = {}) {
  const auto half = head_size / 2;
  if (batch * sequence * heads * half == 0) return;
  const auto count = static_cast<double>(batch * sequence * heads * head_size);
  device.run({.name = "rope", .flops = 3 * count, .bytes = 2 * count * sizeof(T)}, [&](cudaStream_t stream) {
    // Blocks enough for every multiprocessor where the sequence is short, and not so many that angles cost.
    const auto parts =
        std::clamp<std::int64_t>(device.properties().multiprocessors * std::int64_t{8} / sequence, 1, batch);
    const dim3 grid(static_cast<unsigned>(sequence), static_cast<unsigned>(parts));
    const auto shared = 2 * static_cast<std::size_t>(half) * sizeof(compute_t<T>);
    constexpr int lanes = detail::vector_lanes<T>;
    const auto launch = [&]<int N>(std::integral_constant<int, N>) {
      detail::rope_kernel<N><<<grid, detail::rope_threads, shared, stream>>>(
          x, stride, batch, sequence, static_cast<int>(heads), static_cast<int>(half), base, static_cast<int>(turn),
          positions);
    };
    if (half % lanes == 0 && stride % lanes == 0 && detail::aligned_for<lanes>(x))
      launch(std::integral_constant<int, lanes>{});
    else
      launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace zeropp::kernels
#endif
