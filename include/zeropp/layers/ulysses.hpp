// SPDX-License-Identifier: Apache-2.0
// Ulysses attention: before attention context ranks exchange positions for heads, after it heads for positions, so that
// each computes some heads over whole sequences (Jacobs et al., "DeepSpeed Ulysses", 2023, arXiv 2309.14509). The ranks
// need not divide the heads; where key and value heads are fewer than ranks, ranks that share one each get a copy.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/layers/context_shard.hpp>
#include <zeropp/layers/packed_heads.hpp>

namespace zeropp {

/// The heads that a rank computes.
struct HeadShare {
  Range query, kv;
};

/// Ranks take consecutive key and value heads, each with all queries that use it; where ranks are more than those, the
/// ranks of one share its queries. At most one such head, or one query head, more than on another rank. Throws
/// ConfigError for fewer query heads than ranks, and names `layer`.
inline HeadShare heads_of_rank(std::int64_t heads, std::int64_t kv_heads, int rank, int ranks, std::string_view layer,
                               Where where = Where::here()) {
  if (heads < ranks)
    throw ConfigError(text(layer, ": ", heads, " heads cannot be shared by ", ranks,
                           " context ranks; use at most as many ranks as heads, or ring attention"),
                      where);
  const auto group = heads / kv_heads;
  if (kv_heads >= ranks) {
    const Range kv{kv_heads * rank / ranks, kv_heads * (rank + 1) / ranks};
    return {{kv.begin * group, kv.end * group}, kv};
  }
  std::int64_t kv = 0;  // the head whose ranks hold this one
  while ((kv + 1) * ranks / kv_heads <= rank) ++kv;
  const auto first = kv * ranks / kv_heads, count = (kv + 1) * ranks / kv_heads - first, place = rank - first;
  const Range query{kv * group + group * place / count, kv * group + group * (place + 1) / count};
  return {query, {kv, kv + 1}};
}

namespace detail {

/// Columns of rows [B, t, ...] that go to each rank, and back.
class ColumnExchange {
 public:
  /// `columns[r]` are those of rank r, side by side; ranges of several ranks may overlap. `width` holds all.
  ColumnExchange(const Comm& comm, std::int64_t width, std::vector<std::vector<Range>> columns)
      : comm_(comm), width_(width), columns_(std::move(columns)) {
    for (auto& of_rank : columns_) {
      widths_.push_back(0);
      for (auto& range : of_rank) widths_.back() += range.size();
    }
  }

  /// x [B, t, width] of this rank's positions to [B, T, own width] of all.
  template <class C, class T>
  Tensor<T, 3> to_columns(C& ctx, Tensor<T, 3> x) const {
    const auto batch = x.extent(0), here = x.extent(1), rows = batch * here, own = own_width();
    const auto counts = counts_of(rows);
    auto out = ctx.template make<1, T>({sum(counts)});
    kernels::copy_rectangles(ctx.device, columns_as_blocks(rows), x.data(), out.data());
    x = {};
    const std::vector<std::int64_t> even(counts.size(), rows * own);
    auto in = ctx.template make<1, T>({sum(even)});
    comm_.all_to_all(std::span<const T>{out.span()}, counts, in.span(), even);
    const Extents<3> whole{batch, here * comm_.size(), own};
    if (batch == 1) return in.template reshape<3>(whole);
    out = {};
    auto y = ctx.template make<3, T>(whole);
    kernels::copy_rectangles(ctx.device, positions_as_blocks(batch, here, false), in.data(), y.data());
    return y;
  }

  /// The way back: y [B, T, own width] to [B, t, width]; columns that several ranks have are summed, in their order.
  template <class C, class T>
  Tensor<T, 3> to_positions(C& ctx, Tensor<T, 3> y) const {
    const auto batch = y.extent(0), here = y.extent(1) / comm_.size(), rows = batch * here;
    const auto counts = counts_of(rows);
    const std::vector<std::int64_t> even(counts.size(), rows * own_width());
    auto out = batch == 1 ? y.template reshape<1>({y.size()}) : ctx.template make<1, T>({y.size()});
    if (batch != 1) kernels::copy_rectangles(ctx.device, positions_as_blocks(batch, here, true), y.data(), out.data());
    y = {};
    auto in = ctx.template make<1, T>({sum(counts)});
    comm_.all_to_all(std::span<const T>{out.span()}, even, in.span(), counts);
    out = {};
    auto x = ctx.template make<3, T>({batch, here, width_});
    std::vector<kernels::Rectangle> first, more;
    std::vector<Range> seen;
    for (auto rectangle : columns_as_blocks(rows)) {
      std::swap(rectangle.from, rectangle.to);
      std::swap(rectangle.from_stride, rectangle.to_stride);
      const Range columns{rectangle.to, rectangle.to + rectangle.width};
      bool again = false;
      for (auto& range : seen) again |= range == columns;
      (again ? more : first).push_back(rectangle);
      seen.push_back(columns);
    }
    kernels::copy_rectangles(ctx.device, first, in.data(), x.data());
    if (!more.empty()) kernels::add_rectangles(ctx.device, more, in.data(), x.data());
    return x;
  }

 private:
  std::int64_t own_width() const { return widths_[static_cast<std::size_t>(comm_.rank())]; }
  std::vector<std::int64_t> counts_of(std::int64_t rows) const {
    std::vector<std::int64_t> counts;
    for (auto width : widths_) counts.push_back(rows * width);
    return counts;
  }
  static std::int64_t sum(const std::vector<std::int64_t>& counts) {
    std::int64_t all = 0;
    for (auto count : counts) all += count;
    return all;
  }

  /// From rows of all columns to one block [rows, own columns] a rank.
  std::vector<kernels::Rectangle> columns_as_blocks(std::int64_t rows) const {
    std::vector<kernels::Rectangle> all;
    std::int64_t block = 0;
    for (std::size_t r = 0; r < columns_.size(); ++r) {
      std::int64_t column = 0;
      for (auto& range : columns_[r]) {
        all.push_back({range.begin, width_, block + column, widths_[r], rows, range.size()});
        column += range.size();
      }
      block += rows * widths_[r];
    }
    return all;
  }
  /// From blocks [B, t, own] of each rank's positions to [B, T, own], or the other way.
  std::vector<kernels::Rectangle> positions_as_blocks(std::int64_t batch, std::int64_t here, bool back) const {
    std::vector<kernels::Rectangle> all;
    const auto row = here * own_width();
    for (int r = 0; r < comm_.size(); ++r) {
      kernels::Rectangle one{r * batch * row, row, r * row, comm_.size() * row, batch, row};
      if (back) {
        std::swap(one.from, one.to);
        std::swap(one.from_stride, one.to_stride);
      }
      all.push_back(one);
    }
    return all;
  }

  Comm comm_;
  std::int64_t width_;
  std::vector<std::vector<Range>> columns_;
  std::vector<std::int64_t> widths_;
};

class UlyssesAttention {
 public:
  UlyssesAttention(const PackedHeads& heads, const ContextShard& shard, std::string_view layer)
      : packed_(shard.comm(), heads.packed_width(), columns(heads, shard, layer, true)),
        output_(shard.comm(), heads.width(), columns(heads, shard, layer, false)),
        here_(here(heads, shard, layer)) {}

  template <class C, class T>
  Attended<T> forward(C& ctx, Tensor<T, 3> packed) const {
    auto a = here_.forward(ctx, packed_.to_columns(ctx, std::move(packed)));
    a.exchanged = ctx.save(a.output);
    a.output = output_.to_positions(ctx, std::move(a.output));
    return a;
  }
  template <class C, class T>
  Tensor<T, 3> backward(C& ctx, Attended<T> a, Tensor<T, 3> doutput) const {
    a.output = std::move(a.exchanged);
    auto dpacked = here_.backward(ctx, std::move(a), output_.to_columns(ctx, std::move(doutput)));
    return packed_.to_positions(ctx, std::move(dpacked));
  }

 private:
  static std::vector<std::vector<Range>> columns(const PackedHeads& h, const ContextShard& shard, std::string_view layer,
                                                 bool with_keys) {
    std::vector<std::vector<Range>> all;
    for (int r = 0; r < shard.size(); ++r) {
      const auto share = heads_of_rank(h.heads, h.kv_heads, r, shard.size(), layer);
      all.push_back({elements_of(share.query, h.size)});
      if (!with_keys) continue;
      all.back().push_back(elements_of(share.kv, h.size, h.width()));
      all.back().push_back(elements_of(share.kv, h.size, h.width() + h.kv_width()));
    }
    return all;
  }
  static WholeAttention here(const PackedHeads& h, const ContextShard& shard, std::string_view layer) {
    const auto share = heads_of_rank(h.heads, h.kv_heads, shard.rank(), shard.size(), layer);
    return WholeAttention{{share.query.size(), share.kv.size(), h.size}};
  }

  ColumnExchange packed_, output_;
  WholeAttention here_;
};

}  // namespace detail

}  // namespace zeropp
