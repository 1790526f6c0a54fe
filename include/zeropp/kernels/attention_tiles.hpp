// SPDX-License-Identifier: Apache-2.0
// The parts of attention. A tile holds the scores of `tile_keys` keys for as many queries as the tile of registers
// is wide, a query a lane: maxima and sums go over rows of vectors, and a tile of scores is itself a packed operand of
// the products that follow, so it is never turned.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <zeropp/base/shape.hpp>
#include <zeropp/kernels/gemm.hpp>

namespace zeropp::kernels {

/// B, T, H query heads that share Hkv key and value heads (Hkv divides H), D elements a head.
struct AttentionShape {
  std::int64_t batch, sequence, heads, kv_heads, head_size;
  /// Positions of keys and values where they are others than those of the queries (at least 1); 0: T, the same.
  std::int64_t keys = 0;
  /// Query t sees the keys up to number t + offset (at least 0): keys - 1 shows all of them to every query.
  std::int64_t offset = 0;

  std::int64_t key_count() const { return keys ? keys : sequence; }
};

/// Heads side by side in rows: row t of sequence b begins at data + b · sequence + t · stride; head h at h · head_size
/// within it.
template <class T>
struct HeadsView {
  T* data;
  std::int64_t stride;
  std::int64_t sequence = 0;  ///< elements from one sequence to the next; 0: as many rows as there are positions
};

namespace detail {

inline constexpr std::int64_t tile_keys = 96;  ///< a multiple of every number of rows below
inline constexpr int deep_rows = 6, deep_vectors = register_count >= 32 ? 4 : 2;

/// One head of one sequence as a matrix [rows, D].
template <class T>
MatrixView<T> head_of(HeadsView<T> from, std::int64_t rows, std::int64_t size, std::int64_t b, std::int64_t head) {
  const auto sequence = from.sequence ? from.sequence : rows * from.stride;
  return {from.data + b * sequence + head * size, rows, size, from.stride};
}

/// Places in a thread's scratch, linear in T; they stay with the thread and are not counted in the pool.
template <class C>
class AttentionScratch {
 public:
  void reserve(std::int64_t elements) { next_ = memory_.at_least(elements); }
  C* take(std::int64_t elements) {
    C* at = next_;
    next_ += space(elements);
    return at;
  }
  static std::int64_t space(std::int64_t elements) { return round_up(elements, lanes<C>); }

  static AttentionScratch& of_thread() {
    static thread_local AttentionScratch scratch;
    return scratch;
  }

 private:
  Scratch<C> memory_;
  C* next_ = nullptr;
};

/// `count` queries of one head against keys [key, key + keys); the first query sees keys up to number `first`.
template <class C>
struct AttentionTile {
  static constexpr int queries = tile_columns<C>;
  std::int64_t first, count, key, keys;

  /// All tiles of the block of queries from `first` on that are not masked as a whole.
  template <class F>
  static void for_each(std::int64_t first, const AttentionShape& s, F f) {
    const auto count = std::min<std::int64_t>(queries, s.sequence - first);
    const auto seen = std::min(s.key_count(), first + s.offset + count);
    for (std::int64_t key = 0; key < seen; key += tile_keys)
      f(AttentionTile{first + s.offset, count, key, std::min(tile_keys, seen - key)});
  }

  /// to [keys, queries] = left · right, with `left` packed by rows of [T, D] and `right` a panel [D, queries].
  void products(const C* left, const C* right, std::int64_t depth, C* to) const {
    for (std::int64_t r = 0; r < keys; r += tile_rows)
      micro<tile_rows, tile_vectors, 1, tile_rows>(left + (key + r) * depth, right, queries, depth, to + r * queries,
                                                   queries, false);
  }

  /// to [D, queries] = or += leftᵀ · scores, with `left` packed by columns of [T, D].
  void gather(const C* left, const C* scores, std::int64_t sequence, std::int64_t size, C* to, bool add) const {
    for (std::int64_t d = 0; d < size; d += tile_rows)
      micro<tile_rows, tile_vectors, 1, tile_rows>(left + d * sequence + key * tile_rows, scores, queries, keys,
                                                   to + d * queries, queries, add);
  }

  /// to [T, width] += scores · rows, for the keys of this tile; rows [queries, width]; scores beyond `keys` are 0.
  template <int Vectors = deep_vectors>
  void scatter(const C* scores, const C* rows, std::int64_t width, C* to, std::int64_t column = 0) const {
    constexpr int across = Vectors * lanes<C>;
    for (; column + across <= width; column += across)
      for (std::int64_t r = 0; r < keys; r += deep_rows)
        micro<deep_rows, Vectors, queries, 1>(scores + r * queries, rows + column, width, count,
                                              to + (key + r) * width + column, width, true);
    if constexpr (Vectors > 1) scatter<Vectors - 1>(scores, rows, width, to, column);
  }

  /// −∞ where a query does not see a key.
  void mask(C* scores) const {
    for (auto r = std::max<std::int64_t>(0, first - key + 1); r < keys; ++r)
      std::fill_n(scores + r * queries, std::min<std::int64_t>(queries, key + r - first),
                  -std::numeric_limits<C>::infinity());
  }
  void clear_beyond(C* scores) const {
    std::fill(scores + keys * queries, scores + round_up(keys, deep_rows) * queries, C{0});
  }
};

/// to [D, queries] *= factor.
template <class C>
void scale_panel(C* to, std::int64_t size, C factor) {
  for (std::int64_t i = 0; i < size * tile_columns<C>; ++i) to[i] *= factor;
}

/// Rows of a head as they are, in the compute type, 0 up to `width`.
template <class C, class T>
void copy_rows(MatrixView<const T> head, std::int64_t first, std::int64_t count, std::int64_t width, C factor, C* to) {
  for (std::int64_t r = 0; r < count; ++r, to += width) {
    const T* from = head.data + (first + r) * head.stride;
    for (std::int64_t d = 0; d < head.columns; ++d) to[d] = static_cast<C>(from[d]) * factor;
    std::fill(to + head.columns, to + width, C{0});
  }
}

/// A head [T, D] from rows of `width`.
template <class C, class T>
void store_rows(const C* from, std::int64_t width, MatrixView<T> head) {
  for (std::int64_t r = 0; r < head.rows; ++r, from += width)
    for (std::int64_t d = 0; d < head.columns; ++d) head.data[r * head.stride + d] = static_cast<T>(from[d]);
}

}  // namespace detail

}  // namespace zeropp::kernels
