// SPDX-License-Identifier: Apache-2.0
// Causal attention in tiles with an online softmax (Dao et al., "FlashAttention", 2022): no T × T matrix, only the
// output and one log-sum-exp a row are kept; backward computes the tiles again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/attention_tiles.hpp>
#include <zeropp/kernels/math.hpp>

namespace zeropp::kernels {

namespace detail {

/// The shape as kernels take it: an offset that shows more than all keys is one that shows all, so that no sum of
/// positions overflows. Throws ConfigError.
inline AttentionShape checked(AttentionShape s) {
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    throw ConfigError(text("attention: ", s.heads, " query heads cannot share ", s.kv_heads, " key heads evenly"));
  if (s.keys < 0 || s.offset < 0)
    throw ConfigError(text("attention to ", s.key_count(),
                           " keys was asked for, of which the first query sees those up to number ", s.offset,
                           "; neither can be negative: leave out queries that see no key"));
  s.offset = std::min(s.offset, s.key_count());
  return s;
}

/// One block of queries, packed as [D, queries] in `q`: leaves the output in `out` [D, queries], not yet divided by
/// `sum`, and the greatest scores in `top`.
template <class C>
void attention_forward_block(std::int64_t first, const AttentionShape& s, const C* q, const C* keys, const C* values,
                             C* out, C* scores, C* top, C* sum) {
  constexpr int queries = tile_columns<C>;
  std::fill_n(top, queries, -std::numeric_limits<C>::infinity());
  std::fill_n(sum, queries, C{0});
  AttentionTile<C>::for_each(first, s, [&](const AttentionTile<C>& tile) {
    tile.products(keys, q, s.head_size, scores);
    tile.mask(scores);
    C highest[std::size_t{queries}], shrink[std::size_t{queries}];
    std::copy_n(top, queries, highest);
    for (std::int64_t r = 0; r < tile.keys; ++r)
      for (int l = 0; l < queries; ++l)
        highest[l] = scores[r * queries + l] > highest[l] ? scores[r * queries + l] : highest[l];
    for (int l = 0; l < queries; ++l) {
      shrink[l] = kernels::exp(top[l] - highest[l]);
      sum[l] *= shrink[l];
      top[l] = highest[l];
    }
    for (std::int64_t r = 0; r < tile.keys; ++r)
      for (int l = 0; l < queries; ++l)
        sum[l] += scores[r * queries + l] = kernels::exp(scores[r * queries + l] - highest[l]);
    if (tile.key > 0)
      for (std::int64_t d = 0; d < s.head_size; ++d)
        for (int l = 0; l < queries; ++l) out[d * queries + l] *= shrink[l];
    tile.gather(values, scores, s.key_count(), s.head_size, out, tile.key > 0);
  });
}

/// The operands of the backward of one pair of sequence and key head: keys and values packed by rows, keys by columns;
/// dk and dv [T, width]; and for one block of queries, queries and gradients of the output both packed and in rows.
template <class C>
struct AttentionBackward {
  static constexpr int queries = tile_columns<C>;
  std::int64_t padded, width;  ///< D as packed by columns, and as a row
  C *keys, *values, *keys_by_columns, *dk, *dv;
  C *q, *dout, *dq, *q_rows, *dout_rows, *p, *ds;

  explicit AttentionBackward(const AttentionShape& s)
      : padded(round_up(s.head_size, tile_rows)), width(round_up(s.head_size, lanes<C>)) {
    auto& scratch = AttentionScratch<C>::of_thread();
    const auto count = s.key_count();
    const auto by_rows = scratch.space(round_up(count, tile_rows) * s.head_size);
    const auto by_columns = scratch.space(padded * count), sums = (count + deep_rows) * width;
    const auto panel = padded * queries, rows = queries * width, tile = tile_keys * queries;
    scratch.reserve(2 * by_rows + by_columns + 2 * sums + 3 * panel + 2 * rows + 2 * tile);
    for (C** at : {&keys, &values}) *at = scratch.take(by_rows);
    keys_by_columns = scratch.take(by_columns);
    for (C** at : {&dk, &dv}) {
      *at = scratch.take(sums);
      std::fill_n(*at, sums, C{0});
    }
    for (C** at : {&q, &dout, &dq}) *at = scratch.take(panel);
    for (C** at : {&q_rows, &dout_rows}) *at = scratch.take(rows);
    for (C** at : {&p, &ds}) *at = scratch.take(tile);
  }

  /// Adds to dk and dv, leaves dq [D, queries] of the scaled queries.
  void block(std::int64_t first, const AttentionShape& s, const C* lse, const C* delta) {
    AttentionTile<C>::for_each(first, s, [&](const AttentionTile<C>& tile) {
      tile.products(keys, q, s.head_size, p);
      tile.mask(p);
      for (std::int64_t r = 0; r < tile.keys; ++r)
        for (int l = 0; l < queries; ++l) p[r * queries + l] = kernels::exp(p[r * queries + l] - lse[l]);
      tile.clear_beyond(p);
      tile.scatter(p, dout_rows, width, dv);
      tile.products(values, dout, s.head_size, ds);
      for (std::int64_t r = 0; r < tile.keys; ++r)
        for (int l = 0; l < queries; ++l) ds[r * queries + l] = p[r * queries + l] * (ds[r * queries + l] - delta[l]);
      tile.clear_beyond(ds);
      tile.scatter(ds, q_rows, width, dk);
      tile.gather(keys_by_columns, ds, s.key_count(), s.head_size, dq, tile.key > 0);
    });
  }
};

inline Cost attention_cost(std::string_view name, const AttentionShape& s, double products, std::size_t element) {
  const auto rows = static_cast<double>(s.sequence), keys = static_cast<double>(s.key_count());
  // queries see one key more each, until they see all
  const double growing = std::clamp(keys - 1 - static_cast<double>(s.offset), 0.0, rows);
  const double pairs = growing * ((growing + 1) / 2 + static_cast<double>(s.offset)) + (rows - growing) * keys;
  const double elements = rows * static_cast<double>(2 * s.heads) + keys * static_cast<double>(2 * s.kv_heads);
  const auto batch = static_cast<double>(s.batch), size = static_cast<double>(s.head_size);
  return {.name = name,
          .kind = CostKind::attention,
          .flops = products * 2 * batch * pairs * static_cast<double>(s.heads) * size,
          .bytes = batch * elements * size * static_cast<double>(element)};
}

/// causal_attention_forward with output of type Out.
template <class T, class Out, Device D>
void attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                       HeadsView<const T> v, HeadsView<Out> out, compute_t<T>* lse) {
  using C = compute_t<T>;
  device.run(attention_cost("attention", s, 2, sizeof(T)), [&](auto& workers) {
    constexpr int queries = tile_columns<C>;
    const auto size = s.head_size, group = s.heads / s.kv_heads;
    const auto padded_size = round_up(size, tile_rows);
    const auto key_count = s.key_count();
    const auto by_rows = round_up(key_count, tile_rows) * size, by_columns = padded_size * key_count;
    const C scale = 1 / std::sqrt(static_cast<C>(size));
    workers.for_each(s.batch * s.kv_heads, 1, [&](std::int64_t pair, std::int64_t) {
      const auto b = pair / s.kv_heads, kv = pair % s.kv_heads;
      auto& scratch = AttentionScratch<C>::of_thread();
      scratch.reserve(scratch.space(by_rows) + scratch.space(by_columns) + (size + padded_size + tile_keys) * queries);
      C *keys = scratch.take(by_rows), *values = scratch.take(by_columns);
      C *q_block = scratch.take(size * queries), *out_block = scratch.take(padded_size * queries);
      C* scores = scratch.take(tile_keys * queries);
      pack<tile_rows>(head_of(k, key_count, size, b, kv), keys);
      pack<tile_rows>(head_of(v, key_count, size, b, kv).t(), values);
      for (auto h = kv * group; h < (kv + 1) * group; ++h) {
        const auto q_head = head_of(q, s.sequence, size, b, h);
        const auto out_head = head_of(out, s.sequence, size, b, h);
        for (std::int64_t first = 0; first < s.sequence; first += queries) {
          const auto count = std::min<std::int64_t>(queries, s.sequence - first);
          pack_panel<queries>(q_head, first, static_cast<int>(count), q_block);
          scale_panel(q_block, size, scale);
          C top[std::size_t{queries}], sum[std::size_t{queries}];
          attention_forward_block<C>(first, s, q_block, keys, values, out_block, scores, top, sum);
          for (std::int64_t l = 0; l < count; ++l)
            lse[(b * s.heads + h) * s.sequence + first + l] = top[l] + std::log(sum[l]);
          for (C& l : sum) l = 1 / l;
          for (std::int64_t d = 0; d < size; ++d)
            for (int l = 0; l < queries; ++l) out_block[d * queries + l] *= sum[l];
          unpack<C>(out_block, queries, count, size, out_head.data + first * out_head.stride, out_head.stride);
        }
      }
    });
  });
}

/// causal_attention_backward with gradients of type G.
template <class T, class G, Device D>
void attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                        HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse, HeadsView<const T> dout,
                        HeadsView<G> dq, HeadsView<G> dk, HeadsView<G> dv) {
  using C = compute_t<T>;
  device.run(attention_cost("attention backward", s, 5, sizeof(T)), [&](auto& workers) {
    constexpr int queries = tile_columns<C>;
    const auto size = s.head_size, group = s.heads / s.kv_heads, key_count = s.key_count();
    const C scale = 1 / std::sqrt(static_cast<C>(size));
    workers.for_each(s.batch * s.kv_heads, 1, [&](std::int64_t pair, std::int64_t) {
      const auto b = pair / s.kv_heads, kv = pair % s.kv_heads;
      const auto k_head = head_of(k, key_count, size, b, kv);
      AttentionBackward<C> work(s);
      pack<tile_rows>(k_head, work.keys);
      pack<tile_rows>(head_of(v, key_count, size, b, kv), work.values);
      pack<tile_rows>(k_head.t(), work.keys_by_columns);
      for (auto h = kv * group; h < (kv + 1) * group; ++h) {
        const auto q_head = head_of(q, s.sequence, size, b, h), dout_head = head_of(dout, s.sequence, size, b, h);
        for (std::int64_t first = 0; first < s.sequence; first += queries) {
          const auto count = std::min<std::int64_t>(queries, s.sequence - first);
          const auto packed = static_cast<int>(count);
          pack_panel<queries>(q_head, first, packed, work.q);
          scale_panel(work.q, size, scale);
          copy_rows(q_head, first, count, work.width, scale, work.q_rows);
          pack_panel<queries>(dout_head, first, packed, work.dout);
          copy_rows(dout_head, first, count, work.width, C{1}, work.dout_rows);
          C shift[std::size_t{queries}] = {}, delta[std::size_t{queries}] = {};
          std::copy_n(lse + (b * s.heads + h) * s.sequence + first, count, shift);
          pack_panel<queries>(head_of(out, s.sequence, size, b, h), first, packed, work.dq);
          for (std::int64_t d = 0; d < size; ++d)
            for (int l = 0; l < queries; ++l) delta[l] += work.dout[d * queries + l] * work.dq[d * queries + l];
          work.block(first, s, shift, delta);
          scale_panel(work.dq, size, scale);
          const auto to = head_of(dq, s.sequence, size, b, h);
          unpack<C>(work.dq, queries, count, size, to.data + first * to.stride, to.stride);
        }
      }
      store_rows(work.dk, work.width, head_of(dk, key_count, size, b, kv));
      store_rows(work.dv, work.width, head_of(dv, key_count, size, b, kv));
    });
  });
}

}  // namespace detail

/// out = softmax(q kᵀ / √D, causal) v; lse [B, H, T] is what backward needs. Threads share the pairs of sequence and
/// key head.
template <Device D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  detail::attention_forward<T, T>(device, detail::checked(s), q, k, v, out, lse);
}

/// Overwrites dq, dk, dv. Key and value gradients add up over blocks of queries, and over the query heads that share
/// them, in order.
template <Device D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  detail::attention_backward<T, T>(device, detail::checked(s), q, k, v, out, lse, dout, dq, dk, dv);
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/attention.hpp>
#endif
