// SPDX-License-Identifier: Apache-2.0
// Causal attention in tiles with an online softmax (Dao et al., "FlashAttention", 2022): no T × T matrix, only the
// output and one log-sum-exp a row are kept; backward computes the tiles again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <zeropp/kernels/math.hpp>
#include <zeropp/kernels/matmul.hpp>

namespace zeropp::kernels {

/// B, T, H query heads that share Hkv key and value heads (Hkv divides H), D elements a head.
struct AttentionShape {
  std::int64_t batch, context, heads, kv_heads, head_size;
};

/// Heads side by side in rows: row b·T + t begins at data + (b·T + t) · stride; head h at h · head_size within it.
template <class T>
struct HeadsView {
  T* data;
  std::int64_t stride;
};

namespace detail {

inline constexpr std::int64_t attention_tile = 128;

/// Copies one head between rows of a view and a dense [T, D] buffer of the compute type.
template <class C, class T>
void load_head(HeadsView<T> from, std::int64_t row, std::int64_t head, std::int64_t context, std::int64_t size, C* to) {
  for (std::int64_t t = 0; t < context; ++t) {
    const auto* at = from.data + (row + t) * from.stride + head * size;
    for (std::int64_t i = 0; i < size; ++i) to[t * size + i] = static_cast<C>(at[i]);
  }
}
template <class C, class T>
void store_head(const C* from, HeadsView<T> to, std::int64_t row, std::int64_t head, std::int64_t context,
                std::int64_t size) {
  for (std::int64_t t = 0; t < context; ++t) {
    auto* at = to.data + (row + t) * to.stride + head * size;
    for (std::int64_t i = 0; i < size; ++i) at[i] = static_cast<T>(from[t * size + i]);
  }
}

/// Dense buffers of one thread, linear in T: they stay with the thread and are not counted in the pool.
template <class C>
struct HeadScratch {
  std::vector<C> memory;
  C* next = nullptr;

  void reserve(std::int64_t elements) {
    memory.resize(static_cast<std::size_t>(elements));
    next = memory.data();
  }
  C* take(std::int64_t elements) { return std::exchange(next, next + elements); }
};

template <class C>
HeadScratch<C>& head_scratch() {
  static thread_local HeadScratch<C> scratch;
  return scratch;
}

/// scores = q · kᵀ for the tile of rows [i, i + rows) and columns [j, j + columns); −∞ above the diagonal. q is scaled.
template <class C>
void score_tile(const C* q, const C* k, C* scores, std::int64_t i, std::int64_t rows, std::int64_t j,
                std::int64_t columns, std::int64_t size) {
  product<C>(row_major(q + i * size, rows, size), row_major(k + j * size, columns, size).t(),
             row_major(scores, rows, columns), Into::overwrite);
  for (std::int64_t r = 0; r < rows; ++r)
    for (auto c = std::max<std::int64_t>(0, i + r - j + 1); c < columns; ++c)
      scores[r * columns + c] = -std::numeric_limits<C>::infinity();
}

template <class C>
C row_maximum(const C* row, std::int64_t n, C start) {
  constexpr int lanes = 16;
  C top[lanes];
  std::fill_n(top, lanes, start);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int l = 0; l < lanes; ++l) top[l] = row[i + l] > top[l] ? row[i + l] : top[l];
  for (; i < n; ++i) top[0] = std::max(top[0], row[i]);
  return *std::max_element(top, top + lanes);
}

/// row = e^(row − shift); returns its sum in 16 interleaved partial sums.
template <class C>
C exponentiate(C* row, std::int64_t n, C shift) {
  constexpr int lanes = 16;
  C partial[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int l = 0; l < lanes; ++l) partial[l] += row[i + l] = kernels::exp(row[i + l] - shift);
  for (int l = 0; i < n; ++i, ++l) partial[l] += row[i] = kernels::exp(row[i] - shift);
  C sum = 0;
  for (C p : partial) sum += p;
  return sum;
}

/// One head: out [T, D] and lse [T] from q (scaled by 1/√D), k, v, all dense.
template <class C>
void attention_forward_head(const C* q, const C* k, const C* v, C* out, C* lse, std::int64_t context, std::int64_t size,
                            C* scores) {
  for (std::int64_t i = 0; i < context; i += attention_tile) {
    const auto rows = std::min(attention_tile, context - i);
    C top[attention_tile], sum[attention_tile] = {};
    std::fill_n(top, rows, -std::numeric_limits<C>::infinity());
    for (std::int64_t j = 0; j <= i; j += attention_tile) {
      const auto columns = std::min(attention_tile, context - j);
      score_tile(q, k, scores, i, rows, j, columns, size);
      for (std::int64_t r = 0; r < rows; ++r) {
        C* row = scores + r * columns;
        const C highest = row_maximum(row, columns, top[r]);
        const C shrink = kernels::exp(top[r] - highest);
        sum[r] = sum[r] * shrink + exponentiate(row, columns, highest);
        if (j > 0)
          for (std::int64_t d = 0; d < size; ++d) out[(i + r) * size + d] *= shrink;
        top[r] = highest;
      }
      product<C>(row_major(static_cast<const C*>(scores), rows, columns), row_major(v + j * size, columns, size),
                 row_major(out + i * size, rows, size), j ? Into::add : Into::overwrite);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const C inverse = 1 / sum[r];
      for (std::int64_t d = 0; d < size; ++d) out[(i + r) * size + d] *= inverse;
      lse[i + r] = top[r] + std::log(sum[r]);
    }
  }
}

/// One head: adds to dq (of the scaled q), dk, dv, all dense [T, D].
template <class C>
void attention_backward_head(const C* q, const C* k, const C* v, const C* out, const C* dout, const C* lse, C* dq,
                             C* dk, C* dv, std::int64_t context, std::int64_t size, C* scores, C* dscores) {
  for (std::int64_t i = 0; i < context; i += attention_tile) {
    const auto rows = std::min(attention_tile, context - i);
    C delta[attention_tile];
    for (std::int64_t r = 0; r < rows; ++r) {
      C sum = 0;
      for (std::int64_t d = 0; d < size; ++d) sum += dout[(i + r) * size + d] * out[(i + r) * size + d];
      delta[r] = sum;
    }
    const auto q_i = row_major(q + i * size, rows, size), dout_i = row_major(dout + i * size, rows, size);
    for (std::int64_t j = 0; j <= i; j += attention_tile) {
      const auto columns = std::min(attention_tile, context - j);
      score_tile(q, k, scores, i, rows, j, columns, size);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c)
          scores[r * columns + c] = kernels::exp(scores[r * columns + c] - lse[i + r]);
      const auto p = row_major(static_cast<const C*>(scores), rows, columns);
      const auto ds = row_major(static_cast<const C*>(dscores), rows, columns);
      product<C>(p.t(), dout_i, row_major(dv + j * size, columns, size), Into::add);
      product<C>(dout_i, row_major(v + j * size, columns, size).t(), row_major(dscores, rows, columns),
                 Into::overwrite);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < columns; ++c)
          dscores[r * columns + c] = scores[r * columns + c] * (dscores[r * columns + c] - delta[r]);
      product<C>(ds, row_major(k + j * size, columns, size), row_major(dq + i * size, rows, size), Into::add);
      product<C>(ds.t(), q_i, row_major(dk + j * size, columns, size), Into::add);
    }
  }
}

template <class C>
void scale_into(C* x, std::int64_t n, C factor) {
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

inline Cost attention_cost(std::string_view name, const AttentionShape& s, double products, std::size_t element) {
  const double rows = static_cast<double>(s.batch * s.context);
  const double half = static_cast<double>(s.context + 1) / 2;
  return {
      .name = name,
      .flops = products * 2 * rows * half * static_cast<double>(s.heads * s.head_size),
      .bytes = rows * static_cast<double>((2 * s.heads + 2 * s.kv_heads) * s.head_size) * static_cast<double>(element)};
}

}  // namespace detail

/// out = softmax(q kᵀ / √D, causal) v; lse [B, H, T] is what backward needs.
template <Device D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  using C = compute_t<T>;
  device.run(detail::attention_cost("attention", s, 2, sizeof(T)), [&](auto& workers) {
    const auto dense = s.context * s.head_size, group = s.heads / s.kv_heads;
    workers.for_each(s.batch * s.kv_heads, 1, [&](std::int64_t begin, std::int64_t) {
      const auto b = begin / s.kv_heads, kv = begin % s.kv_heads, row = b * s.context;
      auto& scratch = detail::head_scratch<C>();
      scratch.reserve(4 * dense + detail::attention_tile * detail::attention_tile);
      C *q_head = scratch.take(dense), *k_head = scratch.take(dense), *v_head = scratch.take(dense);
      C *out_head = scratch.take(dense), *scores = scratch.take(0);
      detail::load_head(k, row, kv, s.context, s.head_size, k_head);
      detail::load_head(v, row, kv, s.context, s.head_size, v_head);
      for (auto h = kv * group; h < (kv + 1) * group; ++h) {
        detail::load_head(q, row, h, s.context, s.head_size, q_head);
        detail::scale_into(q_head, dense, 1 / std::sqrt(static_cast<C>(s.head_size)));
        detail::attention_forward_head(q_head, k_head, v_head, out_head, lse + (b * s.heads + h) * s.context, s.context,
                                       s.head_size, scores);
        detail::store_head(out_head, out, row, h, s.context, s.head_size);
      }
    });
  });
}

/// Overwrites dq, dk, dv. Key and value gradients add up over their query heads in order.
template <Device D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  using C = compute_t<T>;
  device.run(detail::attention_cost("attention backward", s, 5, sizeof(T)), [&](auto& workers) {
    const auto dense = s.context * s.head_size, group = s.heads / s.kv_heads;
    workers.for_each(s.batch * s.kv_heads, 1, [&](std::int64_t begin, std::int64_t) {
      const auto b = begin / s.kv_heads, kv = begin % s.kv_heads, row = b * s.context;
      auto& scratch = detail::head_scratch<C>();
      scratch.reserve(8 * dense + 2 * detail::attention_tile * detail::attention_tile);
      C *q_head = scratch.take(dense), *k_head = scratch.take(dense), *v_head = scratch.take(dense);
      C *out_head = scratch.take(dense), *dout_head = scratch.take(dense), *dq_head = scratch.take(dense);
      C *dk_head = scratch.take(dense), *dv_head = scratch.take(dense);
      C *scores = scratch.take(detail::attention_tile * detail::attention_tile), *dscores = scratch.take(0);
      detail::load_head(k, row, kv, s.context, s.head_size, k_head);
      detail::load_head(v, row, kv, s.context, s.head_size, v_head);
      std::fill_n(dk_head, dense, C{0});
      std::fill_n(dv_head, dense, C{0});
      const C scale = 1 / std::sqrt(static_cast<C>(s.head_size));
      for (auto h = kv * group; h < (kv + 1) * group; ++h) {
        detail::load_head(q, row, h, s.context, s.head_size, q_head);
        detail::scale_into(q_head, dense, scale);
        detail::load_head(out, row, h, s.context, s.head_size, out_head);
        detail::load_head(dout, row, h, s.context, s.head_size, dout_head);
        std::fill_n(dq_head, dense, C{0});
        detail::attention_backward_head(q_head, k_head, v_head, out_head, dout_head,
                                        lse + (b * s.heads + h) * s.context, dq_head, dk_head, dv_head, s.context,
                                        s.head_size, scores, dscores);
        detail::scale_into(dq_head, dense, scale);
        detail::store_head(dq_head, dq, row, h, s.context, s.head_size);
      }
      detail::store_head(dk_head, dk, row, kv, s.context, s.head_size);
      detail::store_head(dv_head, dv, row, kv, s.context, s.head_size);
    });
  });
}

}  // namespace zeropp::kernels
