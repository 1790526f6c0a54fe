// SPDX-License-Identifier: Apache-2.0
// Attention backward on tensor cores, deterministic without an order to wait for: one kernel owns keys and sums their
// gradients over all queries, a second owns queries and sums theirs over all keys. Both compute the scores again, so 7
// products stand where the formulas have 5; in return every score and its gradient stay in the registers of the warp
// that needs them as an operand, and no sum goes through memory.
#pragma once

#include <zeropp/kernels/cuda/attention/panels.hpp>

namespace zeropp::kernels::detail {

/// A block owns warps · atoms · 16 keys and takes queries by tiles.
template <class T, int D, int Warps = 4, int Queries = (D > 64 ? 64 : 32), int Blocks = 2>
struct KeyTile {
  using Element = T;
  static constexpr int head_size = D, warps = Warps, atoms = D > 64 ? 1 : 2, threads = warps * 32;
  static constexpr int keys = warps * atoms * 16, queries = Queries, blocks = Blocks;
  static constexpr int shared_bytes = (2 * keys + 4 * queries) * panel_stride<D> * 2 + 2 * queries * 8;
};
/// A block owns warps · atoms · 16 queries and takes keys by tiles.
template <class T, int D, int Keys = (D > 64 ? 32 : 64), int Blocks = 2>
struct QueryTile {
  using Element = T;
  static constexpr int head_size = D, warps = 4, atoms = 2, threads = warps * 32;
  static constexpr int queries = warps * atoms * 16, keys = Keys, blocks = Blocks;
  static constexpr int shared_bytes = (2 * queries + 4 * keys) * panel_stride<D> * 2;
};

#ifdef __CUDACC__

/// Computes the rows of AttentionTiles, D / 8 threads a row of `count`.
template <int D, class T, class R>
__global__ void __launch_bounds__(256) attention_backward_rows(const AttentionTiles<T, R> a, std::int64_t count) {
  constexpr int threads = D / 8;
  const std::int64_t row = std::int64_t{blockIdx.x} * (256 / threads) + threadIdx.x / threads;  // b · T + t, then h
  if (row >= count) return;
  const int piece = static_cast<int>(threadIdx.x) % threads;
  const std::int64_t h = row % a.heads, b = row / a.heads / a.sequence, t = row / a.heads % a.sequence;
  const auto from = [&](const auto& heads) {
    return *reinterpret_cast<const uint4*>(heads.data + b * heads.sequence + t * heads.stride + h * D + piece * 8);
  };
  float sum = dot<T>(from(a.saved_out), from(a.dout));
  for (int other = threads / 2; other > 0; other /= 2) sum += __shfl_xor_sync(__activemask(), sum, other);
  if (piece == 0) {
    const std::int64_t at = (b * a.heads + h) * a.sequence + t;
    *reinterpret_cast<float2*>(a.rows + 2 * at) = {a.saved_lse[at] * log2_e, sum};
  }
}

/// dk and dv. Grid: blocks of keys × B·Hkv; the first ones, which most queries see, come first. Scores are held
/// transposed [keys, queries]. Queries beyond the sequence are zeros, and so are their parts of the sums.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    attention_backward_keys(const AttentionTiles<typename Tile::Element, R> a) {
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size;
  constexpr int atoms = Tile::atoms, count = Tile::queries, panel = count * panel_stride<D>;
  extern __shared__ uint4 attention_shared[];
  T* const k = reinterpret_cast<T*>(attention_shared);
  T* const v = k + Tile::keys * panel_stride<D>;
  T* const stages = v + Tile::keys * panel_stride<D>;  // queries, dout; queries, dout
  float2* const stage_rows = reinterpret_cast<float2*>(stages + 4 * panel);

  const int blocks = (a.keys + Tile::keys - 1) / Tile::keys;
  const int first = static_cast<int>(blockIdx.x % blocks) * Tile::keys;
  const std::int64_t pair = blockIdx.x / blocks, b = pair / a.kv_heads, kv = pair % a.kv_heads;
  const int group = a.heads / a.kv_heads, end = (a.sequence + count - 1) / count;
  const int begin = min(max(first - a.offset, 0) / count, end - 1);  // the first queries that see these keys, if any do
  int next_tile = begin, parity = 0;  // what is loaded next: a tile of queries of a head, and where to
  std::int64_t next_head = kv * group;
  const auto load = [&] {
    T* const to = stages + parity * 2 * panel;
    load_panel<D, count, Tile::threads>(to, a.q.data + b * a.q.sequence + next_head * D, a.q.stride, next_tile * count,
                                        a.sequence);
    load_panel<D, count, Tile::threads>(to + panel, a.dout.data + b * a.dout.sequence + next_head * D, a.dout.stride,
                                        next_tile * count, a.sequence);
    const int place = static_cast<int>(threadIdx.x), query = next_tile * count + place;
    if (place < count) {
      const bool there = query < a.sequence;
      copy_8(stage_rows + parity * count + place,
             a.rows + 2 * ((b * a.heads + next_head) * a.sequence + (there ? query : 0)), there);
    }
    parity ^= 1;
    if (++next_tile == end) next_tile = begin, ++next_head;
  };
  load_panel<D, Tile::keys, Tile::threads>(k, a.k.data + b * a.k.sequence + kv * D, a.k.stride, first, a.keys);
  load_panel<D, Tile::keys, Tile::threads>(v, a.v.data + b * a.v.sequence + kv * D, a.v.stride, first, a.keys);
  load();

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * atoms * 16;
  T *const own_k = k + row * panel_stride<D>, *const own_v = v + row * panel_stride<D>;
  float dk[atoms][D / 8][4] = {}, dv[atoms][D / 8][4] = {};
  int tile = begin;
  for (int steps = group * (end - begin); steps > 0; --steps, tile = tile + 1 == end ? begin : tile + 1) {
    const int before = first + row - a.offset - tile * count;  // first key of the warp − last one that the tile's
                                                               // first query sees
    const T *const q = stages + (parity ^ 1) * 2 * panel, *const dout = q + panel;
    const auto of_rows = reinterpret_cast<const float4*>(stage_rows + (parity ^ 1) * count);  // two queries each
    wait_for_copies();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    if (steps > 1) load();
    if (before > count - 1) continue;  // all its queries come before this warp's keys

    float p[atoms][count / 8][4], ds[atoms][count / 8][4];
    multiply_rows<D, atoms, count>(p, own_k, q);
    const bool masked = before + atoms * 16 - 1 > 0;
#pragma unroll
    for (int n = 0; n < count / 8; ++n) {
      const float4 two = of_rows[n * 4 + lane % 4];
#pragma unroll
      for (int i = 0; i < atoms; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[i][n][e] = power_of_2(p[i][n][e] * (a.scale * log2_e) - (e % 2 ? two.z : two.x));
          if (masked && before + i * 16 + lane / 4 + e / 2 * 8 > n * 8 + lane % 4 * 2 + e % 2) p[i][n][e] = 0;
        }
    }
    multiply_add<D, atoms, count>(dv, p, dout);
    multiply_rows<D, atoms, count>(ds, own_v, dout);
#pragma unroll
    for (int n = 0; n < count / 8; ++n) {
      const float4 two = of_rows[n * 4 + lane % 4];
#pragma unroll
      for (int i = 0; i < atoms; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[i][n][e] = p[i][n][e] * (ds[i][n][e] - (e % 2 ? two.w : two.y));
    }
    multiply_add<D, atoms, count>(dk, ds, q);
  }

  float scale[atoms][2], one[atoms][2];
#pragma unroll
  for (int i = 0; i < atoms; ++i) scale[i][0] = scale[i][1] = a.scale, one[i][0] = one[i][1] = 1;
  store_panel<D, atoms>(dk, scale, own_k, a.dk.data + b * a.dk.sequence + kv * D, a.dk.stride, first + row, a.keys);
  store_panel<D, atoms>(dv, one, own_v, a.dv.data + b * a.dv.sequence + kv * D, a.dv.stride, first + row, a.keys);
}

/// dq. Grid: blocks of queries × B·H; the last blocks of a sequence, which see the most keys, come first.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    attention_backward_queries(const AttentionTiles<typename Tile::Element, R> a) {
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size;
  constexpr int atoms = Tile::atoms, count = Tile::keys, panel = count * panel_stride<D>;
  extern __shared__ uint4 attention_shared[];
  T* const q = reinterpret_cast<T*>(attention_shared);
  T* const dout = q + Tile::queries * panel_stride<D>;
  T* const stages = dout + Tile::queries * panel_stride<D>;  // keys, values; keys, values

  const int blocks = (a.sequence + Tile::queries - 1) / Tile::queries;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * Tile::queries;
  const std::int64_t pair = blockIdx.x / blocks, b = pair / a.heads, h = pair % a.heads;
  const std::int64_t kv = h / (a.heads / a.kv_heads);
  const T* const k = a.k.data + b * a.k.sequence + kv * D;
  const T* const v = a.v.data + b * a.v.sequence + kv * D;
  const auto load = [&](int tile) {
    T* const to = stages + tile % 2 * 2 * panel;
    load_panel<D, count, Tile::threads>(to, k, a.k.stride, tile * count, a.keys);
    load_panel<D, count, Tile::threads>(to + panel, v, a.v.stride, tile * count, a.keys);
  };
  load_panel<D, Tile::queries, Tile::threads>(q, a.q.data + b * a.q.sequence + h * D, a.q.stride, first, a.sequence);
  load_panel<D, Tile::queries, Tile::threads>(dout, a.dout.data + b * a.dout.sequence + h * D, a.dout.stride, first,
                                              a.sequence);
  load(0);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * atoms * 16;
  T *const own_q = q + row * panel_stride<D>, *const own_dout = dout + row * panel_stride<D>;
  float shift[atoms][2], delta[atoms][2];
#pragma unroll
  for (int i = 0; i < atoms; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + row + i * 16 + half * 8 + lane / 4;
      const float* const of_row = a.rows + 2 * (pair * a.sequence + query);
      shift[i][half] = query < a.sequence ? of_row[0] : 0.0f;
      delta[i][half] = query < a.sequence ? of_row[1] : 0.0f;
    }

  float dq[atoms][D / 8][4] = {};
  const int seen = min(first + Tile::queries + a.offset, a.keys);
  const int tiles = (seen + count - 1) / count;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    if (tile + 1 < tiles) load(tile + 1);
    const int before = tile * count - first - row - a.offset;  // first key of the tile − last one that the warp's
                                                               // first query sees
    if (before > atoms * 16 - 1) continue;                     // all its keys come after this warp's queries
    const T *const keys = stages + tile % 2 * 2 * panel, *const values = keys + panel;

    float p[atoms][count / 8][4], ds[atoms][count / 8][4];
    multiply_rows<D, atoms, count>(p, own_q, keys);
    multiply_rows<D, atoms, count>(ds, own_dout, values);
    const int there = a.keys - tile * count;  // of the tile's keys
    const bool masked = before + count - 1 > 0 || there < count;
#pragma unroll
    for (int i = 0; i < atoms; ++i)
#pragma unroll
      for (int n = 0; n < count / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float at = power_of_2(p[i][n][e] * (a.scale * log2_e) - shift[i][e / 2]);
          ds[i][n][e] = at * (ds[i][n][e] - delta[i][e / 2]);
          if (masked && n * 8 + lane % 4 * 2 + e % 2 > min(i * 16 + lane / 4 + e / 2 * 8 - before, there - 1))
            ds[i][n][e] = 0;
        }
    multiply_add<D, atoms, count>(dq, ds, keys);
  }

  float scale[atoms][2];
#pragma unroll
  for (int i = 0; i < atoms; ++i) scale[i][0] = scale[i][1] = a.scale;
  store_panel<D, atoms>(dq, scale, own_q, a.dq.data + b * a.dq.sequence + h * D, a.dq.stride, first + row, a.sequence);
}

#endif

}  // namespace zeropp::kernels::detail
