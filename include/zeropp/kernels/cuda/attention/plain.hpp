// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU in the plain way, for float, double, bf16 and f16 and any size of head: a warp owns a row and
// computes scores where it needs them. Tests compare the tiles with it, and it runs where the tiles don't apply.
#pragma once

#include <cmath>
#include <cstdint>

#include <zeropp/base/dtype.hpp>
#include <zeropp/kernels/attention_tiles.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

namespace zeropp::kernels::detail {

/// All that the plain kernels read and write; what one of them has no use for is null. Results are of type R. The shape
/// says how many keys there are, and views how far apart sequences lie.
template <class T, class R = T>
struct AttentionPlain {
  AttentionShape s;
  HeadsView<const T> q, k, v, out, dout;
  HeadsView<R> to, dk, dv;  ///< to: out forward, dq backward
  compute_t<T>* lse;        ///< [B, H, T]: written forward, read backward
  compute_t<T>* delta;      ///< [B, H, T]: rowsum(dO ∘ O)
  compute_t<T> scale;       ///< 1 / √D
};

inline constexpr int plain_warps = 4;

#ifdef __CUDACC__

struct PlainRow {
  std::int64_t b, head, position;
  int lane;
  /// Row number of this warp, of [B, heads, positions].
  __device__ static std::int64_t index() { return std::int64_t{blockIdx.x} * plain_warps + threadIdx.x / 32; }
  __device__ PlainRow(std::int64_t heads, std::int64_t positions)
      : b(index() / positions / heads),
        head(index() / positions % heads),
        position(index() % positions),
        lane(static_cast<int>(threadIdx.x) % 32) {}
};

/// Element 0 of a head at a position.
template <class T>
__device__ T* place_of(HeadsView<T> view, const AttentionShape& s, std::int64_t b, std::int64_t head,
                       std::int64_t position) {
  return view.data + b * view.sequence + position * view.stride + head * s.head_size;
}
/// Keys that a query sees: this many, from the first on.
__device__ inline std::int64_t seen_by(std::int64_t query, const AttentionShape& s) {
  return query + s.offset + 1 < s.keys ? query + s.offset + 1 : s.keys;
}
template <class C, class T>
__device__ C dot(const T* left, const T* right, std::int64_t size) {
  C sum = 0;
  for (std::int64_t d = 0; d < size; ++d) sum += static_cast<C>(left[d]) * static_cast<C>(right[d]);
  return sum;
}
/// A warp a query: the log-sum-exp of its scores, then its output.
template <class T, class R>
__global__ void __launch_bounds__(plain_warps * 32) attention_forward_plain(const AttentionPlain<T, R> a) {
  using C = compute_t<T>;
  if (PlainRow::index() >= a.s.batch * a.s.heads * a.s.sequence) return;
  const PlainRow row(a.s.heads, a.s.sequence);
  const std::int64_t kv = row.head / (a.s.heads / a.s.kv_heads), size = a.s.head_size;
  const T* const q = place_of(a.q, a.s, row.b, row.head, row.position);
  const auto score = [&](std::int64_t key) { return dot<C>(q, place_of(a.k, a.s, row.b, kv, key), size) * a.scale; };
  const std::int64_t seen = seen_by(row.position, a.s);
  C top = -static_cast<C>(INFINITY), sum = 0;
  for (std::int64_t key = row.lane; key < seen; key += 32) {
    const C s = score(key), highest = s > top ? s : top;
    sum = sum * std::exp(top - highest) + std::exp(s - highest);
    top = highest;
  }
  C highest = top;
  for (int other = 16; other > 0; other /= 2) {
    const C theirs = __shfl_xor_sync(0xffffffffu, highest, other);
    highest = theirs > highest ? theirs : highest;
  }
  const C lse = highest + std::log(warp_sum(sum * std::exp(top - highest)));
  if (row.lane == 0) a.lse[PlainRow::index()] = lse;
  R* const to = place_of(a.to, a.s, row.b, row.head, row.position);
  for (std::int64_t d = row.lane; d - row.lane < size; d += 32) {
    C out = 0;
    for (std::int64_t first = 0; first < seen; first += 32) {
      const std::int64_t key = first + row.lane;
      const C p = key < seen ? std::exp(score(key) - lse) : C{0};
      for (int l = 0; l < 32; ++l) {
        const C of_key = __shfl_sync(0xffffffffu, p, l);
        if (first + l < seen && d < size) out += of_key * static_cast<C>(place_of(a.v, a.s, row.b, kv, first + l)[d]);
      }
    }
    if (d < size) to[d] = static_cast<R>(out);
  }
}

/// delta, a warp a query.
template <class T, class R>
__global__ void __launch_bounds__(plain_warps * 32) attention_delta_plain(const AttentionPlain<T, R> a) {
  using C = compute_t<T>;
  if (PlainRow::index() >= a.s.batch * a.s.heads * a.s.sequence) return;
  const PlainRow row(a.s.heads, a.s.sequence);
  const T* const out = place_of(a.out, a.s, row.b, row.head, row.position);
  const T* const dout = place_of(a.dout, a.s, row.b, row.head, row.position);
  C sum = 0;
  for (std::int64_t d = row.lane; d < a.s.head_size; d += 32) sum += static_cast<C>(out[d]) * static_cast<C>(dout[d]);
  sum = warp_sum(sum);
  if (row.lane == 0) a.delta[PlainRow::index()] = sum;
}

/// The probability of a pair of query and key and the gradient of its score.
template <class T>
struct PlainPair {
  compute_t<T> p = 0, ds = 0;
  PlainPair() = default;
  template <class R>
  __device__ PlainPair(const AttentionPlain<T, R>& a, std::int64_t b, std::int64_t h, std::int64_t query,
                       std::int64_t key) {
    using C = compute_t<T>;
    const std::int64_t kv = h / (a.s.heads / a.s.kv_heads), size = a.s.head_size;
    const std::int64_t row = (b * a.s.heads + h) * a.s.sequence + query;
    const C score = dot<C>(place_of(a.q, a.s, b, h, query), place_of(a.k, a.s, b, kv, key), size) * a.scale;
    p = std::exp(score - a.lse[row]);
    ds = p * (dot<C>(place_of(a.dout, a.s, b, h, query), place_of(a.v, a.s, b, kv, key), size) - a.delta[row]);
  }
};

/// dq, a warp a query.
template <class T, class R>
__global__ void __launch_bounds__(plain_warps * 32) attention_queries_plain(const AttentionPlain<T, R> a) {
  using C = compute_t<T>;
  if (PlainRow::index() >= a.s.batch * a.s.heads * a.s.sequence) return;
  const PlainRow row(a.s.heads, a.s.sequence);
  const std::int64_t kv = row.head / (a.s.heads / a.s.kv_heads), size = a.s.head_size;
  R* const to = place_of(a.to, a.s, row.b, row.head, row.position);
  const std::int64_t seen = seen_by(row.position, a.s);
  for (std::int64_t d = row.lane; d - row.lane < size; d += 32) {
    C dq = 0;
    for (std::int64_t first = 0; first < seen; first += 32) {
      const std::int64_t key = first + row.lane;
      PlainPair<T> pair;
      if (key < seen) pair = {a, row.b, row.head, row.position, key};
      for (int l = 0; l < 32; ++l) {
        const C ds = __shfl_sync(0xffffffffu, pair.ds, l);
        if (first + l < seen && d < size) dq += ds * static_cast<C>(place_of(a.k, a.s, row.b, kv, first + l)[d]);
      }
    }
    if (d < size) to[d] = static_cast<R>(dq * a.scale);
  }
}

/// dk and dv, a warp a key: over the query heads that share it and their queries, in order.
template <class T, class R>
__global__ void __launch_bounds__(plain_warps * 32) attention_keys_plain(const AttentionPlain<T, R> a) {
  using C = compute_t<T>;
  if (PlainRow::index() >= a.s.batch * a.s.kv_heads * a.s.keys) return;
  const PlainRow row(a.s.kv_heads, a.s.keys);
  const std::int64_t group = a.s.heads / a.s.kv_heads, size = a.s.head_size;
  const std::int64_t begin = row.position > a.s.offset ? row.position - a.s.offset : 0;  // the first query that sees it
  for (std::int64_t d = row.lane; d - row.lane < size; d += 32) {
    C dk = 0, dv = 0;
    for (std::int64_t h = row.head * group; h < (row.head + 1) * group; ++h)
      for (std::int64_t first = begin; first < a.s.sequence; first += 32) {
        const std::int64_t query = first + row.lane;
        PlainPair<T> pair;
        if (query < a.s.sequence) pair = {a, row.b, h, query, row.position};
        for (int l = 0; l < 32; ++l) {
          const C p = __shfl_sync(0xffffffffu, pair.p, l), ds = __shfl_sync(0xffffffffu, pair.ds, l);
          if (first + l < a.s.sequence && d < size) {
            dv += p * static_cast<C>(place_of(a.dout, a.s, row.b, h, first + l)[d]);
            dk += ds * static_cast<C>(place_of(a.q, a.s, row.b, h, first + l)[d]);
          }
        }
      }
    if (d < size) {
      place_of(a.dk, a.s, row.b, row.head, row.position)[d] = static_cast<R>(dk * a.scale);
      place_of(a.dv, a.s, row.b, row.head, row.position)[d] = static_cast<R>(dv);
    }
  }
}

#endif

}  // namespace zeropp::kernels::detail
