// SPDX-License-Identifier: Apache-2.0
// The head and its cross entropy where ranks share the vocabulary: each computes the logits of its rows of the table, a
// block of rows at a time; of a row of logits the ranks exchange three numbers, never the logits. Who calls brings the
// exchange: kernels know no communicator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <zeropp/kernels/cross_entropy.hpp>

namespace zeropp::kernels {

/// The rows of the table that this rank holds.
struct VocabularyPart {
  Range rows;         ///< of the vocabulary
  std::int64_t used;  ///< of the whole vocabulary, rows that are real
  std::int64_t rank, ranks;

  std::int64_t used_here() const { return rows.clipped({0, used}).size(); }
};

namespace detail {

/// A rank's knowledge of a row of logits: the greatest of its own, the sum of exp(logit − greatest), and the logit of
/// the label, 0 where another rank has it.
template <class C>
struct PartOfRow {
  C highest, sum, target;
};

/// With Keep, the row becomes the exponentials.
template <bool Keep, class C>
PartOfRow<C> part_of_row(C* row, const VocabularyPart& part, std::int64_t label) {
  const bool here = label >= part.rows.begin && label < part.rows.end;
  const C target = here ? row[label - part.rows.begin] : C{0};
  if (part.used_here() == 0) return {-std::numeric_limits<C>::infinity(), 0, target};
  const auto [highest, sum] = sum_of_exponentials<Keep>(row, part.used_here());
  return {highest, static_cast<C>(sum), target};
}

/// The loss of a row out of what all ranks know of it, in the order of ranks: the same bits on each. With Gradient,
/// this rank's exponentials become scale · (softmax − one-hot), 0 beyond what is used.
template <bool Gradient, class C>
double join_row(const PartOfRow<C>* parts, std::int64_t stride, const VocabularyPart& part, std::int64_t label, C* row,
                double scale) {
  double highest = -std::numeric_limits<double>::infinity(), sum = 0, target = 0;
  for (std::int64_t r = 0; r < part.ranks; ++r)
    highest = std::max(highest, static_cast<double>(parts[r * stride].highest));
  for (std::int64_t r = 0; r < part.ranks; ++r) {
    const auto& of = parts[r * stride];
    if (of.sum > 0) sum += static_cast<double>(of.sum) * std::exp(static_cast<double>(of.highest) - highest);
    target += static_cast<double>(of.target);
  }
  if constexpr (Gradient) {
    const auto used = part.used_here();
    const auto mine = static_cast<double>(parts[part.rank * stride].highest);
    const C factor = static_cast<C>(used > 0 ? scale / sum * std::exp(mine - highest) : 0);
    for (std::int64_t i = 0; i < used; ++i) row[i] *= factor;
    if (label >= part.rows.begin && label < part.rows.end) row[label - part.rows.begin] -= static_cast<C>(scale);
    std::fill(row + used, row + part.rows.size(), C{0});
  }
  return std::log(sum) + highest - target;
}

/// As for_each_logits. exchange(mine [3 · rows], all [ranks · 3 · rows]) gathers over the ranks.
template <bool Gradient, Device D, class X, class W, class Exchange, class Then>
LossSum for_each_logits_part(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                             std::int64_t width, const VocabularyPart& part, double scale, Exchange exchange,
                             Then then) {
  using C = compute_t<X>;
  using Part = PartOfRow<C>;
  check_labels(device, labels, part.used);
  const auto vocabulary = part.rows.size(), n = static_cast<std::int64_t>(labels.size()),
             block = logits_rows(n, vocabulary, sizeof(C));
  LossSum total;
  Tensor<C, 2> logits(device.pool(), {block, vocabulary}, Purpose::buffers);
  Tensor<Part, 1> mine(device.pool(), {block}, Purpose::buffers),
      all(device.pool(), {part.ranks * block}, Purpose::buffers);
  const auto numbers = [](Tensor<Part, 1>& of, std::int64_t count) {
    return std::span<C>{&of.data()->highest, static_cast<std::size_t>(3 * count)};
  };
  for (std::int64_t first = 0; first < n; first += block) {
    const auto rows = std::min(block, n - first);
    const auto here = labels.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows));
    const auto label = [here](std::int64_t r) { return std::int64_t{here[static_cast<std::size_t>(r)]}; };
    matmul(device, row_major(x + first * width, rows, width), row_major(w, vocabulary, width).t(),
           row_major(logits.data(), rows, vocabulary));
    const auto count = static_cast<double>(rows * vocabulary);
    device.run({.name = "cross entropy", .flops = 4 * count, .bytes = (Gradient ? 2 : 1) * count * sizeof(C)},
               [&](auto& workers) {
                 workers.for_each(rows, 8, [&](std::int64_t begin, std::int64_t end) {
                   for (auto r = begin; r < end; ++r)
                     mine.data()[r] =
                         label(r) < 0 ? Part{} : part_of_row<Gradient>(logits.data() + r * vocabulary, part, label(r));
                 });
               });
    exchange(std::span<const C>{numbers(mine, rows)}, numbers(all, part.ranks * rows));
    device.run({.name = "cross entropy, joined", .flops = 2 * count, .bytes = (Gradient ? 2 : 0) * count * sizeof(C)},
               [&](auto& workers) {
                 add_losses<Gradient>(workers, here, logits.data(), vocabulary, total, [&](std::int64_t r, C* row) {
                   return join_row<Gradient>(all.data() + r, rows, part, label(r), row, scale);
                 });
               });
    then(first, rows, logits.data());
  }
  return total;
}

}  // namespace detail

/// As linear_cross_entropy, with w [rows of the part, width]: the whole loss, the same bits on every rank.
template <Device D, class X, class W, class Exchange>
LossSum linear_cross_entropy_part(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                  std::int64_t width, const VocabularyPart& part, Exchange exchange) {
  return detail::for_each_logits_part<false>(device, x, w, labels, width, part, 0, exchange, [](auto...) {});
}

/// As linear_cross_entropy_backward: dw is of this rank's rows; dx is what they add to it, to be summed over ranks.
template <Device D, class X, class W, class G, class Exchange>
LossSum linear_cross_entropy_part_backward(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                                           X* dx, G* dw, std::int64_t width, const VocabularyPart& part, double scale,
                                           Exchange exchange, Into into = Into::add) {
  return detail::for_each_logits_part<true>(
      device, x, w, labels, width, part, scale, exchange,
      detail::logits_to_gradients(device, x, w, dx, dw, width, part.rows.size(), into));
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/cross_entropy_split.hpp>
#endif
