// SPDX-License-Identifier: Apache-2.0
// The head of a language model fused with the cross entropy: logits = x · wᵀ exist for a block of rows at a time, never
// whole. Training computes loss and gradients in one sweep, each logit once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/loss_sum.hpp>
#include <zeropp/kernels/math.hpp>
#include <zeropp/kernels/matmul.hpp>

namespace zeropp::kernels {

namespace detail {

inline constexpr std::int64_t logits_bytes = std::int64_t{32} << 20;

/// Rows of logits in memory at a time: at most 32 MiB of them, and a quarter of all. Fewer rows would read the table of
/// weights more often than they compute with it.
inline std::int64_t logits_rows(std::int64_t n, std::int64_t vocabulary, std::size_t element) {
  const auto fit = std::max<std::int64_t>(
      16, logits_bytes / std::max<std::int64_t>(1, vocabulary * static_cast<std::int64_t>(element)));
  return std::min(fit, std::max<std::int64_t>(std::min<std::int64_t>(n, 64), ceil_div(n, 4)));
}

template <Device D>
void check_labels(D& device, std::span<const std::int32_t> labels, std::int64_t used) {
  device.run({.name = "check labels", .bytes = static_cast<double>(labels.size_bytes())}, [&](auto&) {
    for (std::size_t i = 0; i < labels.size(); ++i)
      if (labels[i] >= used)
        throw DataError(text("label ", labels[i], " at place ", i, " of the batch is outside the vocabulary of ", used,
                             "; were the data made with another tokenizer?"));
  });
}

template <class C>
struct RowSum {
  C highest;
  double sum;  ///< of exp(logit − highest)
};

/// The greatest of a row of at least one logit, and the sum of exponentials; with Keep, the row becomes these.
template <bool Keep, class C>
RowSum<C> sum_of_exponentials(C* row, std::int64_t used) {
  constexpr int lanes = 16;
  C top[lanes];
  std::fill_n(top, lanes, row[0]);
  std::int64_t i = 0;
  for (; i + lanes <= used; i += lanes)
    for (int l = 0; l < lanes; ++l) top[l] = std::max(top[l], row[i + l]);
  for (; i < used; ++i) top[0] = std::max(top[0], row[i]);
  const C highest = *std::max_element(top, top + lanes);
  C partial[lanes] = {};
  for (i = 0; i + lanes <= used; i += lanes)
    for (int l = 0; l < lanes; ++l) {
      const C e = kernels::exp(row[i + l] - highest);
      partial[l] += e;
      if constexpr (Keep) row[i + l] = e;
    }
  for (int l = 0; i < used; ++i, ++l) {
    const C e = kernels::exp(row[i] - highest);
    partial[l] += e;
    if constexpr (Keep) row[i] = e;
  }
  double sum = 0;
  for (C p : partial) sum += static_cast<double>(p);
  return {highest, sum};
}

/// Turns a row of logits into its loss; with Gradient, the row becomes scale · (softmax − one-hot) over `used`, 0
/// beyond.
template <bool Gradient, class C>
double cross_entropy_row(C* row, std::int64_t vocabulary, std::int64_t used, std::int32_t label, C scale) {
  const C target = row[label];
  const auto [highest, sum] = sum_of_exponentials<Gradient>(row, used);
  if constexpr (Gradient) {
    const C factor = static_cast<C>(static_cast<double>(scale) / sum);
    for (std::int64_t i = 0; i < used; ++i) row[i] *= factor;
    row[label] -= scale;
    std::fill(row + used, row + vocabulary, C{0});
  }
  return std::log(sum) + static_cast<double>(highest) - static_cast<double>(target);
}

/// Adds the losses of a block of rows to `total`, in their order: row_loss(r, row of logits) where a label counts. With
/// Gradient the rows of the other labels become 0.
template <bool Gradient, class Workers, class C, class F>
void add_losses(Workers& workers, std::span<const std::int32_t> labels, C* logits, std::int64_t vocabulary,
                LossSum& total, F row_loss) {
  std::vector<double> losses(labels.size());
  workers.for_each(static_cast<std::int64_t>(labels.size()), 8, [&](std::int64_t begin, std::int64_t end) {
    for (auto r = begin; r < end; ++r) {
      C* row = logits + r * vocabulary;
      if (labels[static_cast<std::size_t>(r)] >= 0)
        losses[static_cast<std::size_t>(r)] = row_loss(r, row);
      else if (Gradient)
        std::fill_n(row, vocabulary, C{0});
    }
  });
  for (std::size_t r = 0; r < labels.size(); ++r)
    if (labels[r] >= 0) {
      total.sum += losses[r];
      ++total.count;
    }
}

/// The work of one block of gradients of the logits: it overwrites its rows of dx and adds to dw; the first block may
/// overwrite dw too.
template <Device D, class X, class W, class G>
auto logits_to_gradients(D& device, const X* x, const W* w, X* dx, G* dw, std::int64_t width, std::int64_t vocabulary,
                         Into into) {
  return [=, &device](std::int64_t first, std::int64_t rows, const auto* logits) {
    matmul(device, row_major(logits, rows, vocabulary), row_major(w, vocabulary, width),
           row_major(dx + first * width, rows, width));
    matmul(device, row_major(logits, rows, vocabulary).t(), row_major(x + first * width, rows, width),
           row_major(dw, vocabulary, width), first == 0 ? into : Into::add);
  };
}

/// Calls then(first row, rows, logits) for each block of rows after its losses (and gradients) have been computed.
template <bool Gradient, Device D, class X, class W, class Then>
LossSum for_each_logits(D& device, const X* x, const W* w, std::span<const std::int32_t> labels, std::int64_t width,
                        std::int64_t vocabulary, std::int64_t used, double scale, Then then) {
  using C = compute_t<X>;
  check_labels(device, labels, used);
  const auto n = static_cast<std::int64_t>(labels.size()), block = logits_rows(n, vocabulary, sizeof(C));
  LossSum total;
  Tensor<C, 2> logits(device.pool(), {block, vocabulary}, Purpose::buffers);
  for (std::int64_t first = 0; first < n; first += block) {
    const auto rows = std::min(block, n - first);
    matmul(device, row_major(x + first * width, rows, width), row_major(w, vocabulary, width).t(),
           row_major(logits.data(), rows, vocabulary));
    const auto count = static_cast<double>(rows * vocabulary);
    device.run({.name = "cross entropy", .flops = 6 * count, .bytes = (Gradient ? 3 : 2) * count * sizeof(C)},
               [&](auto& workers) {
                 const auto here = labels.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows));
                 add_losses<Gradient>(workers, here, logits.data(), vocabulary, total, [&](std::int64_t r, C* row) {
                   return cross_entropy_row<Gradient>(row, vocabulary, used, here[static_cast<std::size_t>(r)],
                                                      static_cast<C>(scale));
                 });
               });
    then(first, rows, logits.data());
  }
  return total;
}

}  // namespace detail

/// Labels that count: those that are not negative. Waits for the device; 0 on the dry one.
template <Device D>
std::int64_t count_labels(D& device, std::span<const std::int32_t> labels) {
  std::int64_t count = 0;
  device.run({.name = "count labels", .bytes = static_cast<double>(labels.size_bytes())}, [&](auto&) {
    for (auto label : labels) count += label >= 0;
  });
  return count;
}

/// The loss of x [n, width] against labels [n]; negative labels do not count. w is [vocabulary, width], of which `used`
/// rows are real. Nothing is computed on the dry device (0, 0). Throws DataError for a label that is not below `used`.
template <Device D, class X, class W>
LossSum linear_cross_entropy(D& device, const X* x, const W* w, std::span<const std::int32_t> labels,
                             std::int64_t width, std::int64_t vocabulary, std::int64_t used) {
  return detail::for_each_logits<false>(device, x, w, labels, width, vocabulary, used, 0, [](auto...) {});
}

/// Loss and gradients in one sweep: overwrites dx [n, width] and adds to dw, or
/// overwrites it (not where there are no labels), both of scale · Σ losses.
template <Device D, class X, class W, class G>
LossSum linear_cross_entropy_backward(D& device, const X* x, const W* w, std::span<const std::int32_t> labels, X* dx,
                                      G* dw, std::int64_t width, std::int64_t vocabulary, std::int64_t used,
                                      double scale, Into into = Into::add) {
  return detail::for_each_logits<true>(device, x, w, labels, width, vocabulary, used, scale,
                                       detail::logits_to_gradients(device, x, w, dx, dw, width, vocabulary, into));
}

/// out [rows, used] = the logits of some rows of x [n, width].
template <Device D, class X, class W>
void linear_logits(D& device, const X* x, const W* w, std::span<const std::int64_t> rows, std::span<float> out,
                   std::int64_t width, std::int64_t vocabulary, std::int64_t used) {
  using C = compute_t<X>;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Tensor<C, 2> logits(device.pool(), {1, vocabulary}, Purpose::buffers);
    matmul(device, row_major(x + rows[i] * width, 1, width), row_major(w, vocabulary, width).t(),
           row_major(logits.data(), 1, vocabulary));
    device.run({.name = "copy logits"}, [&](auto&) {
      for (std::int64_t v = 0; v < used; ++v)
        out[i * static_cast<std::size_t>(used) + static_cast<std::size_t>(v)] = static_cast<float>(logits.data()[v]);
    });
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/cross_entropy.hpp>
#endif
