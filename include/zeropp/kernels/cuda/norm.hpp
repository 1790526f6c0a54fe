// SPDX-License-Identifier: Apache-2.0
// kernels/norm.hpp on a GPU: one pass over memory each way, the residual's gradient added on the way back. Gradients of
// parameters are sums over the rows of a block, in order, and over blocks, in an order fixed by sizes and the number of
// multiprocessors: two runs give the same bits.
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
#include <zeropp/kernels/cuda/norm_kernels.hpp>

namespace zeropp::kernels {

namespace detail {

/// Enqueues a backward pass by `blocks` blocks of `threads`, or of as many as a row asks for where it can't be moved 16
/// bytes at a time, and adds up what they leave.
template <bool Center, class X, class W, class G>
void launch_norm_backward(const NormBackward<X, W>& a, std::int64_t blocks, int threads, G* dgamma, G* dbeta, Into into,
                          cudaStream_t stream);

/// Threads of a block for `items` of a row.
inline int norm_block(std::int64_t items) {
  return static_cast<int>(std::min<std::int64_t>(round_up(items, 32), norm_threads));
}

/// dbeta is null for RMSNorm.
template <bool Center, CudaDevice D, class X, class W, class G>
void norm_backward(D& device, const Cost& cost, NormBackward<X, W> a, G* dgamma, G* dbeta, Into into) {
  using C = compute_t<X>;
  if (a.n * a.width == 0)
    for (auto* sum : {dgamma, dbeta})
      if (sum && into == Into::overwrite) fill(device, std::span<G>{sum, static_cast<std::size_t>(a.width)}, G{});
  if (a.n * a.width == 0 || (!a.dx && !dgamma)) return;
  constexpr int lanes = vector_lanes<X>, sums = Center ? 2 : 1;
  const bool whole = a.width % lanes == 0;
  // A plan knows no addresses: the grid depends on sizes alone. A multiprocessor's registers hold so many threads.
  const auto vectors = a.width / lanes;
  const int per_thread = !whole ? 0 : vectors <= norm_threads ? 1 : vectors <= 2 * norm_threads ? 2 : 4;
  const int threads = norm_block(whole ? ceil_div(vectors, per_thread) : a.width);
  const int resident = per_thread == 4 ? 320 : 512;
  const auto blocks =
      std::min<std::int64_t>(ceil_div(a.n, 4), device.properties().multiprocessors * std::int64_t{resident / threads});
  Tensor<C, 1> partials;
  if (dgamma) partials = Tensor<C, 1>(device.pool(), {blocks * sums * a.width}, Purpose::buffers);
  a.partials = partials.data();
  device.run(cost, [&](cudaStream_t stream) {
    launch_norm_backward<Center>(a, blocks, threads, dgamma, dbeta, into, stream);
  });
}

#ifdef __CUDACC__

/// f(std::integral_constant<int, V>) for the least V among Vs with items <= V · unit; f(0 of that type) if none is.
template <int... Vs, class F>
void with_vectors(std::int64_t items, std::int64_t unit, F&& f) {
  const bool done = ((items <= Vs * unit && (f(std::integral_constant<int, Vs>{}), true)) || ...);
  if (!done) f(std::integral_constant<int, 0>{});
}

template <bool Center, CudaDevice D, class X, class W>
void norm_forward(D& device, const Cost& cost, const NormForward<X, W>& a) {
  if (a.n * a.width == 0) return;
  device.run(cost, [&](cudaStream_t stream) {
    constexpr int lanes = vector_lanes<X>;
    const bool vector = a.width % lanes == 0 && aligned_for<lanes>(a.x, a.y, a.gamma, a.beta);
    with_vectors<4, 8, 16>(vector ? a.width / lanes : 1 << 20, 32, [&]<int V>(std::integral_constant<int, V>) {
      if constexpr (V > 0) {
        const auto blocks = static_cast<unsigned>(ceil_div(a.n, norm_threads / 32));
        norm_forward_kernel<Center, V><<<blocks, norm_threads, 0, stream>>>(a);
      } else {
        const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(a.n, 1 << 20));
        norm_forward_any_kernel<Center><<<blocks, norm_block(a.width), 0, stream>>>(a);
      }
    });
  });
}

template <bool Center, class X, class W, class G>
void launch_norm_backward(const NormBackward<X, W>& a, std::int64_t blocks, int threads, G* dgamma, G* dbeta, Into into,
                          cudaStream_t stream) {
  constexpr int lanes = vector_lanes<X>, sums = Center ? 2 : 1;
  const auto grid = static_cast<unsigned>(blocks);
  const bool vector = a.width % lanes == 0 && aligned_for<lanes>(a.x, a.dy, a.gamma, a.onto, a.dx);
  with_vectors<1, 2, 4>(vector ? a.width / lanes : 1 << 20, norm_threads, [&]<int V>(std::integral_constant<int, V>) {
    if constexpr (V > 0)
      norm_backward_kernel<Center, V><<<grid, static_cast<unsigned>(threads), 0, stream>>>(a);
    else
      norm_backward_any_kernel<Center><<<grid, static_cast<unsigned>(norm_block(a.width)), 0, stream>>>(a);
  });
  if (dgamma) add_partials(stream, a.partials, blocks, sums * a.width, a.width, dgamma, dbeta, into);
}

#endif

}  // namespace detail

#ifdef __CUDACC__

template <CudaDevice D, class X, class W>
void layer_norm_forward(D& device, const X* x, const W* gamma, const W* beta, compute_t<X> epsilon, X* y,
                        compute_t<X>* mean, compute_t<X>* rstd, std::int64_t n, std::int64_t width) {
  const auto count = static_cast<double>(n * width);
  detail::norm_forward<true>(device, {.name = "layer norm", .flops = 8 * count, .bytes = 2 * count * sizeof(X)},
                             detail::NormForward<X, W>{x, gamma, beta, epsilon, y, mean, rstd, n, width});
}

template <CudaDevice D, class X, class W>
void rms_norm_forward(D& device, const X* x, const W* gamma, compute_t<X> epsilon, X* y, compute_t<X>* rstd,
                      std::int64_t n, std::int64_t width) {
  const auto count = static_cast<double>(n * width);
  detail::norm_forward<false>(device, {.name = "rms norm", .flops = 4 * count, .bytes = 2 * count * sizeof(X)},
                              detail::NormForward<X, W>{x, gamma, nullptr, epsilon, y, nullptr, rstd, n, width});
}

#endif

template <CudaDevice D, class X, class W, class G>
void layer_norm_backward(D& device, const X* dy, const X* x, const W* gamma, const compute_t<X>* mean,
                         const compute_t<X>* rstd, X* dx, G* dgamma, G* dbeta, std::int64_t n, std::int64_t width,
                         const X* onto = nullptr, Into into = Into::add) {
  const auto count = static_cast<double>(n * width);
  detail::norm_backward<true>(
      device, {.name = "layer norm backward", .flops = 14 * count, .bytes = (onto ? 4 : 3) * count * sizeof(X)},
      detail::NormBackward<X, W>{dy, x, gamma, mean, rstd, onto, dx, nullptr, n, width}, dgamma, dbeta, into);
}

template <CudaDevice D, class X, class W, class G>
void rms_norm_backward(D& device, const X* dy, const X* x, const W* gamma, const compute_t<X>* rstd, X* dx, G* dgamma,
                       std::int64_t n, std::int64_t width, const X* onto = nullptr, Into into = Into::add) {
  const auto count = static_cast<double>(n * width);
  detail::norm_backward<false>(
      device, {.name = "rms norm backward", .flops = 9 * count, .bytes = (onto ? 4 : 3) * count * sizeof(X)},
      detail::NormBackward<X, W>{dy, x, gamma, nullptr, rstd, onto, dx, nullptr, n, width}, dgamma,
      static_cast<G*>(nullptr), into);
}

}  // namespace zeropp::kernels
