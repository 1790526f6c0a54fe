// SPDX-License-Identifier: Apache-2.0
// The head and its cross entropy on GPUs where ranks share the vocabulary. Of a row of logits the ranks exchange three
// numbers in the GPU's memory; the logits stay as they are until all is known of their row, and become gradients then.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cross_entropy_split.hpp>
#include <zeropp/kernels/cuda/cross_entropy.hpp>

namespace zeropp::kernels {

namespace detail {

/// parts[r] = what this rank knows of row r; nothing for a label that does not count. `of.used` is of this rank.
template <class T>
void launch_parts_of_rows(const LogitRows<T>& of, const VocabularyPart& part, PartOfRow<compute_t<T>>* parts,
                          cudaStream_t stream);

/// losses[r] out of the parts [ranks, rows] of all ranks, in their order.
template <class C>
void launch_join_losses(const PartOfRow<C>* parts, std::int64_t rows, const std::int32_t* labels,
                        const VocabularyPart& part, double* losses, cudaStream_t stream);

/// Rows of logits become scale · (softmax − one-hot), 0 for a label that does not count.
template <class T>
void launch_join_gradients(const LogitRows<T>& of, const VocabularyPart& part, const PartOfRow<compute_t<T>>* parts,
                           double scale, cudaStream_t stream);

#ifdef __CUDACC__

template <class T>
__global__ void __launch_bounds__(logits_threads)
    parts_of_rows(LogitRows<T> of, VocabularyPart part, PartOfRow<compute_t<T>>* parts) {
  constexpr int n = pack_size<T>;
  const T* const logits = of.logits + blockIdx.x * of.stride;
  const auto* const row = reinterpret_cast<const RowPack<T>*>(logits);
  const std::int64_t label = of.labels[blockIdx.x];
  if (label < 0 || label >= part.used) {
    if (threadIdx.x == 0) parts[blockIdx.x] = {};
    return;
  }
  const int reach = static_cast<int>(ceil_div(of.used, n));
  RowTop<T> top{RowTop<T>::nothing(), 0};
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < reach; i += logits_threads)
    top.take(row[i], of.used - static_cast<std::int64_t>(i) * n);
  top = join_threads(top);
  if (threadIdx.x != 0) return;
  const bool here = label >= part.rows.begin && label < part.rows.end;
  parts[blockIdx.x] = {top.highest, top.sum,
                       here ? static_cast<compute_t<T>>(logits[label - part.rows.begin]) : compute_t<T>{0}};
}

template <class T>
void launch_parts_of_rows(const LogitRows<T>& of, const VocabularyPart& part, PartOfRow<compute_t<T>>* parts,
                          cudaStream_t stream) {
  if (of.rows == 0) return;
  parts_of_rows<T><<<static_cast<unsigned>(of.rows), logits_threads, 0, stream>>>(of, part, parts);
}

struct WholeRow {
  double highest, sum, target;
};

/// Combines the parts of one row, `stride` apart, in the order of ranks: the same bits on each rank.
template <class C>
__device__ WholeRow join_parts(const PartOfRow<C>* parts, std::int64_t stride, std::int64_t ranks) {
  WholeRow whole{-std::numeric_limits<double>::infinity(), 0, 0};
  for (std::int64_t r = 0; r < ranks; ++r)
    if (const auto highest = static_cast<double>(parts[r * stride].highest); highest > whole.highest)
      whole.highest = highest;
  for (std::int64_t r = 0; r < ranks; ++r) {
    const auto of = parts[r * stride];
    if (!(of.sum <= 0))  // NaN comes through
      whole.sum += static_cast<double>(of.sum) * ::exp(static_cast<double>(of.highest) - whole.highest);
    whole.target += static_cast<double>(of.target);
  }
  return whole;
}

template <class C>
__global__ void __launch_bounds__(128) join_losses(const PartOfRow<C>* parts, std::int64_t rows,
                                                   const std::int32_t* labels, VocabularyPart part, double* losses) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  double loss = 0;
  if (const std::int64_t label = labels[r]; label >= 0 && label < part.used) {
    const auto whole = join_parts(parts + r, rows, part.ranks);
    loss = ::log(whole.sum) + whole.highest - whole.target;
  }
  losses[r] = loss;
}

template <class C>
void launch_join_losses(const PartOfRow<C>* parts, std::int64_t rows, const std::int32_t* labels,
                        const VocabularyPart& part, double* losses, cudaStream_t stream) {
  if (rows == 0) return;
  join_losses<C><<<static_cast<unsigned>(ceil_div(rows, 128)), 128, 0, stream>>>(parts, rows, labels, part, losses);
}

template <class T>
__global__ void __launch_bounds__(logits_threads)
    join_gradients(LogitRows<T> of, VocabularyPart part, const PartOfRow<compute_t<T>>* parts, double scale) {
  using C = compute_t<T>;
  constexpr int n = pack_size<T>;
  __shared__ C highest, factor;
  auto* const row = reinterpret_cast<RowPack<T>*>(of.logits + blockIdx.x * of.stride);
  const int me = static_cast<int>(threadIdx.x), packs = static_cast<int>(of.stride / n);
  const std::int64_t label = of.labels[blockIdx.x];
  const bool counts = label >= 0 && label < part.used;
  if (counts && me == 0) {
    const auto whole = join_parts(parts + blockIdx.x, of.rows, part.ranks);
    highest = static_cast<C>(whole.highest);
    factor = static_cast<C>(scale / whole.sum);
  }
  __syncthreads();
  const int reach = counts ? static_cast<int>(ceil_div(of.used, n)) : 0;
  const std::int64_t local = label - part.rows.begin;
  int i = me;
#pragma unroll 4
  for (; i < reach; i += logits_threads) {
    const auto before = static_cast<std::int64_t>(i) * n;
    row[i] = gradient_of<T>(row[i], of.used - before, highest, factor, local - before, static_cast<C>(scale));
  }
  for (; i < packs; i += logits_threads) row[i] = RowPack<T>{};
}

template <class T>
void launch_join_gradients(const LogitRows<T>& of, const VocabularyPart& part, const PartOfRow<compute_t<T>>* parts,
                           double scale, cudaStream_t stream) {
  if (of.rows == 0) return;
  join_gradients<T><<<static_cast<unsigned>(of.rows), logits_threads, 0, stream>>>(of, part, parts, scale);
}

#endif

/// As for_each_tile. exchange(mine [3 · rows], all [ranks · 3 · rows]) gathers over the ranks, in the GPU's memory.
template <bool Gradient, CudaDevice D, class X, class W, class Exchange, class Then>
PendingLoss for_each_tile_part(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                               std::int64_t width, const VocabularyPart& part, double scale, Exchange exchange,
                               Then then) {
  using C = compute_t<X>;
  using Part = PartOfRow<C>;
  const auto vocabulary = part.rows.size(), n = static_cast<std::int64_t>(labels.size()),
             stride = logits_stride(vocabulary, sizeof(X)),
             block = head_rows(n, vocabulary, width, sizeof(X), device.properties().multiprocessors);
  Tensor<X, 2> logits(device.pool(), {block, stride}, Purpose::buffers);
  Tensor<double, 1> losses(device.pool(), {n}, Purpose::buffers);
  Tensor<Part, 1> mine(device.pool(), {block}, Purpose::buffers),
      all(device.pool(), {part.ranks * block}, Purpose::buffers);
  const auto numbers = [](Tensor<Part, 1>& of, std::int64_t count) {
    return std::span<C>{reinterpret_cast<C*>(of.data()), static_cast<std::size_t>(3 * count)};
  };
  for (std::int64_t first = 0; first < n; first += block) {
    const auto rows = std::min(block, n - first);
    const MatrixView<X> tile{logits.data(), rows, vocabulary, stride};
    const LogitRows<X> of{logits.data(), rows, stride, part.used_here(), labels.data() + first};
    matmul(device, row_major(x + first * width, rows, width), row_major(w, vocabulary, width).t(), tile);
    const auto count = static_cast<double>(rows * vocabulary);
    device.run({.name = "cross entropy", .flops = 4 * count, .bytes = count * sizeof(X)},
               [&](cudaStream_t stream) { launch_parts_of_rows(of, part, mine.data(), stream); });
    exchange(std::span<const C>{numbers(mine, rows)}, numbers(all, part.ranks * rows));
    device.run({.name = "cross entropy, joined", .flops = 3 * count, .bytes = (Gradient ? 2 : 0) * count * sizeof(X)},
               [&](cudaStream_t stream) {
                 launch_join_losses(static_cast<const Part*>(all.data()), rows, of.labels, part, losses.data() + first,
                                    stream);
                 if constexpr (Gradient)
                   launch_join_gradients(of, part, static_cast<const Part*>(all.data()), scale, stream);
               });
    then(first, constant(tile));
  }
  return total(device, losses.data(), labels, part.used);
}

}  // namespace detail

/// As linear_cross_entropy, with w [rows of the part, width]: the whole loss, the same bits on every rank.
template <CudaDevice D, class X, class W, class Exchange>
PendingLoss linear_cross_entropy_part(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                      std::int64_t width, const VocabularyPart& part, Exchange exchange) {
  return detail::for_each_tile_part<false>(device, x, w, labels, width, part, 0, exchange, [](auto...) {});
}

/// As linear_cross_entropy_backward: dw is of this rank's rows; dx is what they add to it, to be summed over ranks.
template <CudaDevice D, class X, class W, class G, class Exchange>
PendingLoss linear_cross_entropy_part_backward(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                               X* dx, G* dw, std::int64_t width, const VocabularyPart& part,
                                               double scale, Exchange exchange, Into into = Into::add) {
  return detail::for_each_tile_part<true>(
      device, x, w, labels, width, part, scale, exchange,
      detail::tile_to_gradients(device, x, w, dx, dw, width, part.rows.size(), into));
}

}  // namespace zeropp::kernels
