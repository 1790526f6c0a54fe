// SPDX-License-Identifier: Apache-2.0
// kernels/embedding.hpp on a GPU. Backward sorts the tokens (stable, by cub), then adds the rows of each in the order
// of the batch, in parts of 32 places that are joined in order: the same bits every time, whatever rows are held. A
// token outside the vocabulary is noted in the device's faults, thrown where the host waits next; until then it is no
// row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cuda/embedding_kernels.hpp>
#include <zeropp/kernels/embedding.hpp>

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>
#endif

namespace zeropp::kernels {

namespace detail {

/// Bytes that sorting n pairs may take beyond its inputs and outputs: two copies, and what cub counts in. An upper
/// bound, so that plans without a GPU take what a GPU takes.
constexpr std::size_t sort_bytes(std::int64_t n) { return (std::size_t{1} << 20) + static_cast<std::size_t>(n) * 24; }

/// A backward pass with its memory: pairs [3·n + 1], partials [parts of 32 places, 2, width], scratch [sort_bytes(n)].
template <class Y, class G>
struct EmbeddingBackward {
  using C = std::common_type_t<compute_t<Y>, compute_t<G>>;
  std::span<const std::int32_t> tokens;
  const Y* dy;
  G *dtable, *dpositions;
  std::int64_t sequence, width;
  Range held;
  Positions at;
  std::uint32_t* pairs;
  C* partials;
  std::uint8_t* scratch;
};
template <class Y, class G>
void launch_embedding_backward(const EmbeddingBackward<Y, G>& b, const CudaFaults* faults, cudaStream_t stream);

#ifdef __CUDACC__

/// Pairs (token, place in the batch) by token, then place. Throws CudaError.
inline void sort_tokens(cudaStream_t stream, const std::int32_t* tokens, std::uint32_t* sorted,
                        const std::uint32_t* places, std::uint32_t* order, std::int64_t n, void* scratch) {
  const auto* keys = reinterpret_cast<const std::uint32_t*>(tokens);  // negative ones come last
  std::size_t bytes = 0;
  const auto sort = [&](void* at) {
    cuda_check(cub::DeviceRadixSort::SortPairs(at, bytes, keys, sorted, places, order, static_cast<std::uint32_t>(n), 0,
                                               32, stream),
               "sorting tokens");
  };
  sort(nullptr);
  if (bytes > sort_bytes(n))
    throw CudaError(text("sorting ", n, " tokens takes ", bytes, " B, ", sort_bytes(n),
                         " are set aside for it; use "
                         "the version of the CUDA toolkit that zeropp is tested with"));
  sort(scratch);
}

/// y[i] = a(i) + b(i) for n rows.
template <CudaDevice D, class A, class B, class Y>
void sum_rows(D& device, const Cost& cost, A a, B b, Y* y, std::int64_t n, std::int64_t width) {
  if (n * width == 0) return;
  device.run(cost, [&](cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(ceil_div(n, row_threads / 32));
    constexpr int lanes = vector_lanes<typename A::Element, typename B::Element, Y>;
    if (width % lanes == 0 && aligned_for<lanes>(a.rows, b.rows, y))
      sum_rows_kernel<lanes><<<blocks, row_threads, 0, stream>>>(a, b, y, n, width);
    else
      sum_rows_kernel<1><<<blocks, row_threads, 0, stream>>>(a, b, y, n, width);
  });
}

template <class Y, class G>
void launch_embedding_backward(const EmbeddingBackward<Y, G>& b, const CudaFaults* faults, cudaStream_t stream) {
  using C = typename EmbeddingBackward<Y, G>::C;
  const auto n = static_cast<std::int64_t>(b.tokens.size()), width = b.width, parts = ceil_div(n, token_part);
  std::uint32_t *sorted = b.pairs, *order = sorted + n, *places = order + n, *refused = places + n;
  places_kernel<<<static_cast<unsigned>(ceil_div(n, row_threads)), row_threads, 0, stream>>>(places, refused, n,
                                                                                             faults);
  sort_tokens(stream, b.tokens.data(), sorted, places, order, n, b.scratch);
  const auto launch = [&]<int N>(std::integral_constant<int, N>) {
    const auto vectors = ceil_div(width, N);
    const auto threads = static_cast<unsigned>(std::min<std::int64_t>(round_up(vectors, 32), 256));
    const auto across = static_cast<unsigned>(ceil_div(vectors, threads));
    const dim3 grid(static_cast<unsigned>(parts), across);
    const SortedRows<Y, G, C> a{sorted, order, refused, b.dy, b.dtable, b.partials, b.held, n, width};
    token_parts_kernel<N><<<grid, threads, 0, stream>>>(a);
    join_parts_kernel<N><<<grid, threads, 0, stream>>>(a);
    if (b.dpositions)
      position_sums_kernel<N><<<dim3(static_cast<unsigned>(std::min(b.sequence, n)), across), threads, 0, stream>>>(
          b.dy, b.dpositions, n, b.sequence, width, b.at);
  };
  constexpr int lanes = vector_lanes<Y, G>;
  if (width % lanes == 0 && aligned_for<lanes>(b.dy, b.dtable, b.dpositions))
    launch(std::integral_constant<int, lanes>{});
  else
    launch(std::integral_constant<int, 1>{});
}

#endif

}  // namespace detail

#ifdef __CUDACC__

/// Notes the first token outside [0, vocabulary) in device.faults(); the host does not wait.
template <CudaDevice D>
void check_tokens(D& device, std::span<const std::int32_t> tokens, std::int64_t vocabulary, Where = Where::here()) {
  if (tokens.empty()) return;
  device.run({.name = "check tokens", .bytes = static_cast<double>(tokens.size_bytes())}, [&](cudaStream_t stream) {
    if constexpr (!D::dry)
      detail::check_tokens_kernel<<<1, 1024, 0, stream>>>(tokens.data(), static_cast<std::int64_t>(tokens.size()),
                                                          vocabulary, device.faults());
  });
}

template <CudaDevice D, class W, class Y>
void embedding_forward(D& device, std::span<const std::int32_t> tokens, const W* table, std::int64_t vocabulary,
                       const W* positions, std::int64_t sequence, Y* y, std::int64_t width, Range held = all_rows,
                       Positions places = {}) {
  check_tokens(device, tokens, vocabulary);
  const auto n = static_cast<std::int64_t>(tokens.size());
  const auto count = static_cast<double>(n * width);
  held.end = std::min(held.end, vocabulary);
  detail::sum_rows(device, {.name = "embedding", .flops = count, .bytes = count * (2 * sizeof(W) + sizeof(Y))},
                   detail::TokenRows<W>{tokens.data(), table, held, width},
                   detail::PeriodicRows<W>{positions, sequence, width, places}, y, n, width);
}

template <CudaDevice D, class W, class Y>
void add_rows(D& device, const W* rows, std::int64_t period, Y* y, std::int64_t n, std::int64_t width,
              Positions places = {}) {
  const auto count = static_cast<double>(n * width);
  detail::sum_rows(device, {.name = "add rows", .flops = count, .bytes = count * (sizeof(W) + 2 * sizeof(Y))},
                   detail::PeriodicRows<Y>{y, n, width}, detail::PeriodicRows<W>{rows, period, width, places}, y, n,
                   width);
}

#endif

template <CudaDevice D, class Y, class G>
void embedding_backward(D& device, std::span<const std::int32_t> tokens, const Y* dy, G* dtable, G* dpositions,
                        std::int64_t sequence, std::int64_t width, Range held = all_rows, Positions at = {}) {
  using C = std::common_type_t<compute_t<Y>, compute_t<G>>;
  const auto n = static_cast<std::int64_t>(tokens.size());
  if (n * width == 0) return;
  if (n > (std::int64_t{1} << 31))
    throw ConfigError(text("a batch of ", n, " tokens on one GPU is beyond 2^31; cut it into micro-batches"));
  const auto count = static_cast<double>(n * width);
  const auto parts = ceil_div(n, detail::token_part);
  Tensor<std::uint32_t, 1> pairs(device.pool(), {3 * n + 1}, Purpose::buffers);
  Tensor<C, 1> partials(device.pool(), {parts * 2 * width}, Purpose::buffers);
  Tensor<std::uint8_t, 1> scratch(device.pool(), {static_cast<std::int64_t>(detail::sort_bytes(n))}, Purpose::buffers);
  device.run({.name = "embedding backward", .flops = 2 * count, .bytes = count * (2 * sizeof(Y) + 2 * sizeof(G))},
             [&](cudaStream_t stream) {
               if constexpr (!D::dry)
                 detail::launch_embedding_backward(
                     detail::EmbeddingBackward<Y, G>{tokens, dy, dtable, dpositions, sequence, width, held, at,
                                                     pairs.data(), partials.data(), scratch.data()},
                     device.faults(), stream);
             });
}

}  // namespace zeropp::kernels
