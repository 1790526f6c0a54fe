// SPDX-License-Identifier: Apache-2.0
// Attention forward on Hopper, after Shah et al., "FlashAttention-3" (2024): a warpgroup has the scores of its next
// keys computed before the product of its last probabilities with their values, and takes the softmax of the one while
// the other runs.
#pragma once

#include <zeropp/kernels/cuda/attention/warpgroup_panels.hpp>

namespace zeropp::kernels::detail {

#ifdef __CUDACC__

/// Grid: as many blocks as there are multiprocessors. Compiled for something else than sm_90a it is empty.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_forward_warpgroups(const AttentionTiles<typename Tile::Element, R> a,
                                 const __grid_constant__ WarpgroupWork work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size, N = Tile::moving;
  __shared__ WarpgroupRings<Tile> rings;
  rings.make();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8) rings.bring(a, work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int group = warp / 4, row = warp % 4 * 16 + lane / 4;  // of the group's 64, and 8 more
    const float scale_2 = a.scale * log2_e, lowest = -__int_as_float(0x7f800000);
    int step = 0;
    for (int n = 0;; ++n) {
      const int number = rings.wait_own(n);
      if (number < 0) return;
      const WarpgroupPiece<Tile> piece(a, work, number);
      T* const queries = rings.own(n) + group * 64 * 64;
      const int first = piece.first + group * 64;

      float out[D / 8][4] = {}, s[N / 8][4];
      float top[2] = {lowest, lowest}, sum[2] = {}, shrink[2];
      unsigned p[N / 16][4];

      // Scores of a tile to exp(score − top), with `top` and `sum` brought up to date.
      const auto softmax = [&](int tile) {
        const int before = tile * N - first - a.offset, there = a.keys - tile * N;
        if (before + N - 1 > 0 || there < N)
#pragma unroll
          for (int j = 0; j < N / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (j * 8 + lane % 4 * 2 + e % 2 > min(row + e / 2 * 8 - before, there - 1)) s[j][e] = lowest;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float highest = top[half];
#pragma unroll
          for (int j = 0; j < N / 8; ++j) highest = fmaxf(highest, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
          highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
          highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
          shrink[half] = power_of_2((top[half] - highest) * scale_2);
          top[half] = highest;
          const float shift = highest * scale_2;
          float total[2] = {};
#pragma unroll
          for (int j = 0; j < N / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              total[e] += s[j][half * 2 + e] = power_of_2(s[j][half * 2 + e] * scale_2 - shift);
          sum[half] = sum[half] * shrink[half] + (total[0] + total[1]);
        }
      };
      const auto pack = [&] {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            p[j / 2][j % 2 * 2 + half] = packed<T>(s[j][half * 2], s[j][half * 2 + 1]);
      };

      rings.wait(step);
      fence_products();
      product_of_rows<T, D, Tile::own, N>(s, queries, rings.tile(step));
      close_products();
      await_products<0>(s);
      softmax(piece.begin);
      pack();
      for (int tile = piece.begin + 1; tile < piece.end; ++tile) {
        rings.wait(step + 1);
        fence_products();
        product_of_rows<T, D, Tile::own, N>(s, queries, rings.tile(step + 1));
        close_products();
        add_product<T, D, N>(out, p, rings.tile(step) + N * D);
        close_products();
        await_products<1>(s);
        softmax(tile);
        await_products<0>(out);
        rings.release(step++);
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) out[j][e] *= shrink[e / 2];
        pack();
      }
      fence_products();
      add_product<T, D, N>(out, p, rings.tile(step) + N * D);
      close_products();
      await_products<0>(out);
      rings.release(step++);

#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        if (const int query = first + row + half * 8; lane % 4 == 0 && query < a.sequence)
          a.lse[(std::int64_t{piece.b} * a.heads + piece.head) * a.sequence + query] =
              top[half] * a.scale + logf(sum[half]);
      }
      meet(1 + group, 128);  // nobody's products read what is now written over
      store_rows<D, Tile::own>(out, float2{1 / sum[0], 1 / sum[1]}, queries,
                               a.out.data + std::int64_t{piece.b} * a.out.sequence + std::int64_t{piece.head} * D,
                               a.out.stride, first, row, a.sequence);
      fence_engines();
      rings.release_own(n);
    }
  }
#endif
}

#endif

}  // namespace zeropp::kernels::detail
