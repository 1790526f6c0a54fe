// SPDX-License-Identifier: Apache-2.0
// Attention forward on tensor cores, after Dao, "FlashAttention-2" (2023): a block of four warps owns 128 queries of a
// head, each warp 32 of them; keys and values come in tiles, the next one while this one is worked on; scores and their
// softmax (in base 2) stay in registers, where they are already an operand of the product with the values.
#pragma once

#include <zeropp/kernels/cuda/attention/panels.hpp>

namespace zeropp::kernels::detail {

/// Heads of D elements of type T; `Blocks` share a multiprocessor.
template <class T, int D, int Keys = 64, int Blocks = 2>
struct ForwardTile {
  using Element = T;
  static constexpr int head_size = D, warps = 4, atoms = 2, threads = warps * 32;
  static constexpr int queries = warps * atoms * 16, keys = Keys, blocks = Blocks;
  static constexpr int shared_bytes = (queries + 4 * keys) * panel_stride<D> * 2;
};

#ifdef __CUDACC__

/// One tile of scores becomes exp(score − top) of its rows, `top` and `sum` are brought up to date and the output is
/// scaled where a row's greatest score has changed. `before`: first key of the tile − last one that the warp's first
/// query sees; `end`: keys of the tile that there are.
template <int D, int Atoms, int Keys>
__device__ void online_softmax(float (&s)[Atoms][Keys / 8][4], float (&top)[Atoms][2], float (&sum)[Atoms][2],
                               float (&out)[Atoms][D / 8][4], float scale_2, int before, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float lowest = -__int_as_float(0x7f800000);
  if (before + Keys - 1 > 0 || end < Keys)  // some query does not see some key
#pragma unroll
    for (int i = 0; i < Atoms; ++i)
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (n * 8 + lane % 4 * 2 + e % 2 > min(i * 16 + lane / 4 + e / 2 * 8 - before, end - 1)) s[i][n][e] = lowest;
  float shrink[Atoms][2];
  bool changed = false;
#pragma unroll
  for (int i = 0; i < Atoms; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = top[i][half];
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) highest = fmaxf(highest, fmaxf(s[i][n][half * 2], s[i][n][half * 2 + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      changed |= highest != top[i][half];
      shrink[i][half] = power_of_2((top[i][half] - highest) * scale_2);
      top[i][half] = highest;
      float total = 0;
      const float shift = highest * scale_2;
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; ++e) total += s[i][n][e] = power_of_2(s[i][n][e] * scale_2 - shift);
      sum[i][half] = sum[i][half] * shrink[i][half] + total;
    }
  if (__any_sync(0xffffffffu, changed))
#pragma unroll
    for (int i = 0; i < Atoms; ++i)
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][n][e] *= shrink[i][e / 2];
}

/// Grid: blocks of queries × B·H; the last blocks of a sequence, which see the most keys, come first.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    attention_forward_tiles(const AttentionTiles<typename Tile::Element, R> a) {
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size;
  constexpr int atoms = Tile::atoms, keys = Tile::keys, panel = keys * panel_stride<D>;
  extern __shared__ uint4 attention_shared[];
  T* const queries = reinterpret_cast<T*>(attention_shared);
  T* const stages = queries + Tile::queries * panel_stride<D>;  // keys, values; keys, values

  const int blocks = (a.sequence + Tile::queries - 1) / Tile::queries;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * Tile::queries;
  const std::int64_t pair = blockIdx.x / blocks, b = pair / a.heads, h = pair % a.heads;
  const std::int64_t kv = h / (a.heads / a.kv_heads);
  const T* const k = a.k.data + b * a.k.sequence + kv * D;
  const T* const v = a.v.data + b * a.v.sequence + kv * D;
  const auto load = [&](int tile) {
    T* const to = stages + tile % 2 * 2 * panel;
    load_panel<D, keys, Tile::threads>(to, k, a.k.stride, tile * keys, a.keys);
    load_panel<D, keys, Tile::threads>(to + panel, v, a.v.stride, tile * keys, a.keys);
  };
  load_panel<D, Tile::queries, Tile::threads>(queries, a.q.data + b * a.q.sequence + h * D, a.q.stride, first,
                                              a.sequence);
  load(0);

  const int warp = static_cast<int>(threadIdx.x) / 32, row = warp * atoms * 16;
  float out[atoms][D / 8][4] = {}, top[atoms][2], sum[atoms][2] = {};
#pragma unroll
  for (int i = 0; i < atoms; ++i) top[i][0] = top[i][1] = -__int_as_float(0x7f800000);

  const int seen = min(first + Tile::queries + a.offset, a.keys);
  const int tiles = (seen + keys - 1) / keys;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    if (tile + 1 < tiles) load(tile + 1);
    const int before = tile * keys - first - row - a.offset;
    if (before > atoms * 16 - 1) continue;  // all its keys come after this warp's queries
    const T* const stage = stages + tile % 2 * 2 * panel;
    float s[atoms][keys / 8][4];
    multiply_rows<D, atoms, keys>(s, queries + row * panel_stride<D>, stage);
    online_softmax<D, atoms, keys>(s, top, sum, out, a.scale * log2_e, before, a.keys - tile * keys);
    multiply_add<D, atoms, keys>(out, s, stage + panel);
  }

  const int lane = static_cast<int>(threadIdx.x) % 32;
  float* const lse = a.lse + pair * a.sequence;
#pragma unroll
  for (int i = 0; i < atoms; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& total = sum[i][half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int query = first + row + i * 16 + half * 8 + lane / 4;
      if (lane % 4 == 0 && query < a.sequence) lse[query] = top[i][half] * a.scale + logf(total);
      total = 1 / total;
    }
  store_panel<D, atoms>(out, sum, queries + row * panel_stride<D>, a.out.data + b * a.out.sequence + h * D,
                        a.out.stride, first + row, a.sequence);
}

#endif

}  // namespace zeropp::kernels::detail
