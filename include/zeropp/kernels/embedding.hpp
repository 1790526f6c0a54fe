// SPDX-License-Identifier: Apache-2.0
// Rows of a table picked by token, and rows added by position. Gradients add up in the order of tokens: threads share
// the width, never a row's sum.
#pragma once

#include <cstdint>
#include <span>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/positions.hpp>

namespace zeropp::kernels {

/// Throws DataError that names the first token outside [0, vocabulary).
template <Device D>
void check_tokens(D& device, std::span<const std::int32_t> tokens, std::int64_t vocabulary,
                  Where where = Where::here()) {
  device.run({.name = "check tokens", .bytes = static_cast<double>(tokens.size_bytes())}, [&](auto&) {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] < 0 || tokens[i] >= vocabulary)
        throw DataError(text("token ", tokens[i], " at place ", i, " of the batch is outside the vocabulary of ",
                             vocabulary, "; were the data made with another tokenizer?"),
                        where);
  });
}

/// Rows of a table that are here; a token beyond them adds nothing.
inline constexpr Range all_rows{0, std::int64_t{1} << 62};

/// y[i] = table[tokens[i]] + positions[places[i mod sequence]]; y is [n, width], table [vocabulary, width], of which the
/// rows `held` are at `table`; positions, of `width` too, may be null.
template <Device D, class W, class Y>
void embedding_forward(D& device, std::span<const std::int32_t> tokens, const W* table, std::int64_t vocabulary,
                       const W* positions, std::int64_t sequence, Y* y, std::int64_t width, Range held = all_rows,
                       Positions places = {}) {
  check_tokens(device, tokens, vocabulary);
  const auto n = static_cast<std::int64_t>(tokens.size());
  const auto count = static_cast<double>(n * width);
  device.run({.name = "embedding", .flops = count, .bytes = count * (2 * sizeof(W) + sizeof(Y))}, [&](auto& workers) {
    workers.for_each(n, 64, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = begin; i < end; ++i) {
        const std::int64_t token = tokens[static_cast<std::size_t>(i)];
        const W* place = positions ? positions + places[i % sequence] * width : nullptr;
        if (token < held.begin || token >= held.end) {
          for (std::int64_t c = 0; c < width; ++c)
            y[i * width + c] = static_cast<Y>(place ? compute_t<W>(place[c]) : 0);
          continue;
        }
        const W* row = table + (token - held.begin) * width;
        for (std::int64_t c = 0; c < width; ++c)
          y[i * width + c] = static_cast<Y>(compute_t<W>(row[c]) + (place ? compute_t<W>(place[c]) : 0));
      }
    });
  });
}

/// y[i] += rows[places[i mod period]] for y [n, width]: positions, or with a period of 1 a bias.
template <Device D, class W, class Y>
void add_rows(D& device, const W* rows, std::int64_t period, Y* y, std::int64_t n, std::int64_t width,
              Positions places = {}) {
  const auto count = static_cast<double>(n * width);
  device.run({.name = "add rows", .flops = count, .bytes = count * (sizeof(W) + 2 * sizeof(Y))}, [&](auto& workers) {
    workers.for_each(n, 64, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = begin; i < end; ++i) {
        const W* row = rows + places[i % period] * width;
        for (std::int64_t c = 0; c < width; ++c) {
          Y& to = y[i * width + c];
          to = static_cast<Y>(static_cast<compute_t<Y>>(to) + static_cast<compute_t<Y>>(row[c]));
        }
      }
    });
  });
}

/// Adds dy to the rows of dtable that are `held`, and of dpositions where that is not null.
template <Device D, class Y, class G>
void embedding_backward(D& device, std::span<const std::int32_t> tokens, const Y* dy, G* dtable, G* dpositions,
                        std::int64_t sequence, std::int64_t width, Range held = all_rows, Positions places = {}) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  const auto count = static_cast<double>(n * width);
  device.run({.name = "embedding backward", .flops = 2 * count, .bytes = count * (4 * sizeof(G) + sizeof(Y))},
             [&](auto& workers) {
               workers.for_each(width, 64, [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = 0; i < n; ++i) {
                   const std::int64_t token = tokens[static_cast<std::size_t>(i)];
                   G* row = token >= held.begin && token < held.end ? dtable + (token - held.begin) * width : nullptr;
                   G* place = dpositions ? dpositions + places[i % sequence] * width : nullptr;
                   for (auto c = begin; c < end; ++c) {
                     const auto g = static_cast<compute_t<Y>>(dy[i * width + c]);
                     if (row) row[c] += static_cast<compute_t<G>>(g);
                     if (place) place[c] += static_cast<compute_t<G>>(g);
                   }
                 }
               });
             });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/embedding.hpp>
#endif
