// SPDX-License-Identifier: Apache-2.0
// Attention backward on Hopper: what tiles_backward.hpp computes, by warpgroups. They take turns: while the products of
// one are in the tensor cores the other computes exponentials. Probabilities and their gradients are operands as they
// lie in registers.
#pragma once

#include <zeropp/kernels/cuda/attention/warpgroup_panels.hpp>

namespace zeropp::kernels::detail {

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// The two warpgroups of a block enqueue their products in turns, the first one first.
__device__ inline void take_turn(int group) { meet(3 + group, 256); }
__device__ inline void pass_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); }

#endif

/// A tile that owns queries: dq, and the rows of AttentionTiles for the kernel of keys, which runs after it. One that
/// owns keys: dk and dv. Grid: as many blocks as there are multiprocessors. The two warpgroups have as many tiles, and
/// so as many turns. Compiled for something else than sm_90a it is empty.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_backward_warpgroups(const AttentionTiles<typename Tile::Element, R> a,
                                  const __grid_constant__ WarpgroupWork work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size, N = Tile::moving;
  constexpr bool owns_keys = Tile::owns_keys;
  __shared__ WarpgroupRings<Tile> rings;
  rings.make();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8) rings.bring(a, work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int group = warp / 4, row = warp % 4 * 16 + lane / 4;  // of the group's 64, and 8 more
    int step = 0;
    if (group == 1) pass_turn(group);
    for (int n = 0;; ++n) {
      const int number = rings.wait_own(n);
      if (number < 0) return;
      const WarpgroupPiece<Tile> piece(a, work, number);
      T* const own_0 = rings.own(n) + group * 64 * 64;  // keys or queries; values or dout
      T* const own_1 = own_0 + Tile::own * D;
      const int first = piece.first + group * 64;
      const int steps = (piece.end - piece.begin) * piece.partners;

      uint4 out[2][owns_keys ? 1 : D / 32];  // of this thread's queries, four threads a row
      float shift[2] = {}, delta[2] = {};
      const auto of_query = [&](int half) { return min(first + row + half * 8, a.sequence - 1); };
      const auto of_head = (std::int64_t{piece.b} * a.heads + piece.head) * a.sequence;
      if constexpr (!owns_keys) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const T* const from = a.saved_out.data + std::int64_t{piece.b} * a.saved_out.sequence +
                                of_query(half) * a.saved_out.stride + std::int64_t{piece.head} * D + lane % 4 * 8;
#pragma unroll
          for (int i = 0; i < D / 32; ++i) out[half][i] = *reinterpret_cast<const uint4*>(from + i * 32);
          shift[half] = a.saved_lse[of_head + of_query(half)] * log2_e;
        }
      }
      float of_first[D / 8][4] = {}, of_second[owns_keys ? D / 8 : 1][4] = {};  // dk or dq; dv
      float p[N / 8][4], ds[N / 8][4];

      rings.wait(step);
      fence_products();
      product_of_rows<T, D, Tile::own, N>(p, own_0, rings.tile(step));
      close_products();
      await_products<0>(p);
      if constexpr (!owns_keys) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < D / 32; ++i)
            delta[half] += dot<T>(out[half][i], *reinterpret_cast<const uint4*>(
                                                    piece_of_row<Tile::own>(own_1, row + half * 8, i * 4 + lane % 4)));
          delta[half] += __shfl_xor_sync(~0u, delta[half], 1);
          delta[half] += __shfl_xor_sync(~0u, delta[half], 2);
          if (lane % 4 == 0 && first + row + half * 8 < a.sequence)
            *reinterpret_cast<float2*>(a.rows + 2 * (of_head + of_query(half))) = {shift[half], delta[half]};
        }
      }

      const auto run = [&]<bool Last>(int tile, std::bool_constant<Last>) {
        const T *const moving_0 = rings.tile(step), *const moving_1 = moving_0 + N * D;
        fence_products();
        product_of_rows<T, D, Tile::own, N>(ds, own_1, moving_1);
        close_products();
        // Scores to probabilities. Of keys: rows are keys, columns queries; of queries: the other way round.
        const float2* const of_column = rings.rows(step) + lane % 4 * 2;
        const int before = owns_keys ? first - a.offset - tile * N : tile * N - first - a.offset;
        const int there = a.keys - tile * N;  // of the tile's keys
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          float4 two{};
          if constexpr (owns_keys) two = *reinterpret_cast<const float4*>(of_column + j * 8);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            p[j][e] = power_of_2(p[j][e] * (a.scale * log2_e) - (owns_keys ? (e % 2 ? two.z : two.x) : shift[e / 2]));
        }
        if (owns_keys ? before + 63 > 0 : before + N - 1 > 0 || there < N) {
#pragma unroll
          for (int j = 0; j < N / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int column = j * 8 + lane % 4 * 2 + e % 2, r = row + e / 2 * 8;
              if (owns_keys ? before + r > column : column > min(r - before, there - 1)) p[j][e] = 0;
            }
        }
        await_products<0>(ds);
        unsigned left_p[owns_keys ? N / 16 : 1][4], left_ds[N / 16][4];
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          float4 two{};
          if constexpr (owns_keys) two = *reinterpret_cast<const float4*>(of_column + j * 8);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            ds[j][e] = p[j][e] * (ds[j][e] - (owns_keys ? (e % 2 ? two.w : two.y) : delta[e / 2]));
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if constexpr (owns_keys) left_p[j / 2][j % 2 * 2 + half] = packed<T>(p[j][half * 2], p[j][half * 2 + 1]);
            left_ds[j / 2][j % 2 * 2 + half] = packed<T>(ds[j][half * 2], ds[j][half * 2 + 1]);
          }
        }
        if constexpr (!Last) take_turn(group);
        fence_products();
        if constexpr (owns_keys) add_product<T, D, N>(of_second, left_p, moving_1);
        add_product<T, D, N>(of_first, left_ds, moving_0);
        close_products();
        if constexpr (!Last) {  // the next scores, right behind
          rings.wait(step + 1);
          fence_products();
          product_of_rows<T, D, Tile::own, N>(p, own_0, rings.tile(step + 1));
          close_products();
          pass_turn(group);
        }
        await_products<0>(of_first);
        if constexpr (owns_keys) await_products<0>(of_second);
        if constexpr (!Last) await_products<0>(p);
        rings.release(step++);
      };
      int tile = piece.begin;
      for (int i = 1; i < steps; ++i) {
        run(tile, std::false_type());
        if (++tile == piece.end) tile = piece.begin;
      }
      run(tile, std::true_type());

      int place = row;
      if constexpr (owns_keys) asm volatile("" : "+r"(place));  // addresses are computed here, not kept in registers
      const auto store = [&](const auto& c, float factor, T* through, const auto& to, int end) {
        store_rows<D, Tile::own>(c, float2{factor, factor}, through,
                                 to.data + std::int64_t{piece.b} * to.sequence + std::int64_t{piece.head} * D,
                                 to.stride, first, place, end);
      };
      meet(1 + group, 128);  // nobody's products read what is now written over
      store(of_first, a.scale, own_0, owns_keys ? a.dk : a.dq, owns_keys ? a.keys : a.sequence);
      if constexpr (owns_keys) store(of_second, 1.0f, own_1, a.dv, a.keys);
      fence_engines();
      rings.release_own(n);
    }
  }
#endif
}

#endif

}  // namespace zeropp::kernels::detail
