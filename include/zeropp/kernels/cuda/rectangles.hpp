// SPDX-License-Identifier: Apache-2.0
// kernels/rectangles.hpp on a GPU: a launch a rectangle, 16 bytes of the widest type a thread where all begins allow
// it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/vector.hpp>
#include <zeropp/kernels/rectangles.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

inline constexpr int rectangle_threads = 256;

template <int N, bool Adds, class A, class B>
__global__ void __launch_bounds__(rectangle_threads)
    rectangle_kernel(Rectangle r, const A* from, B* to, std::int64_t vectors) {
  const std::int64_t i = blockIdx.x * std::int64_t{rectangle_threads} + threadIdx.x;
  if (i >= r.rows * vectors) return;
  const std::int64_t row = i / vectors, column = i % vectors * N;
  const auto in = Lanes<A, N>::load(from + r.from + row * r.from_stride + column);
  B* const at = to + r.to + row * r.to_stride + column;
  compute_t<B> out[N];
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = static_cast<compute_t<B>>(in[k]);
  if constexpr (Adds) {
    const auto before = Lanes<B, N>::load(at);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] += before[k];
  }
  Lanes<B, N>::of(out).store(at);
}

template <bool Adds, CudaDevice D, class A, class B>
void rectangles_on_gpu(D& device, std::string_view name, std::span<const Rectangle> rectangles, const A* from, B* to) {
  double count = 0;
  for (const auto& r : rectangles) count += static_cast<double>(r.rows) * static_cast<double>(r.width);
  const double bytes = sizeof(A) + (Adds ? 2 : 1) * sizeof(B);
  device.run({.name = name, .flops = Adds ? count : 0, .bytes = count * bytes}, [&](cudaStream_t stream) {
    constexpr int lanes = vector_lanes<A, B>;
    for (const auto& r : rectangles) {
      if (r.rows * r.width == 0) continue;
      const auto launch = [&]<int N>(std::integral_constant<int, N>) {
        const auto vectors = r.width / N;
        const auto blocks = static_cast<unsigned>(ceil_div(r.rows * vectors, rectangle_threads));
        rectangle_kernel<N, Adds><<<blocks, rectangle_threads, 0, stream>>>(r, from, to, vectors);
      };
      if ((r.from | r.from_stride | r.to | r.to_stride | r.width) % lanes == 0 && aligned_for<lanes>(from, to))
        launch(std::integral_constant<int, lanes>{});
      else
        launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace detail

template <CudaDevice D, class A, class B>
void copy_rectangles(D& device, std::span<const Rectangle> rectangles, const A* from, B* to) {
  detail::rectangles_on_gpu<false>(device, "copy rectangles", rectangles, from, to);
}

template <CudaDevice D, class A, class B>
void add_rectangles(D& device, std::span<const Rectangle> rectangles, const A* from, B* to) {
  detail::rectangles_on_gpu<true>(device, "add rectangles", rectangles, from, to);
}

}  // namespace zeropp::kernels
#endif
