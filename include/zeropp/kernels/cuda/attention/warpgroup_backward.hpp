// SPDX-License-Identifier: Apache-2.0
// Attention backward on Hopper: what tiles_backward.hpp computes, by warpgroups. Two warpgroups own 64 rows each, one
// warp more brings what they need from memory, always a step ahead. Blocks stay on their multiprocessor and take pieces
// of work from a counter, so that no piece waits for another's first bytes. Which block has a piece changes no bit of
// it.
#pragma once

#include <zeropp/kernels/cuda/attention/panels.hpp>
#include <zeropp/kernels/cuda/attention/tensor_copies.hpp>
#include <zeropp/kernels/cuda/attention/warpgroup.hpp>

namespace zeropp::kernels::detail {

/// OwnsKeys: dk and dv of 128 keys from all queries that see them, `moving` queries at a time; else dq of 128 queries
/// from all keys that they see.
template <class T, int D, bool OwnsKeys, int Moving = (D > 64 ? 64 : 128), int Stages = (D > 64 ? 3 : 4)>
struct WarpgroupTile {
  using Element = T;
  static constexpr int head_size = D, own = 128, moving = Moving, stages = Stages, threads = 384;
  static constexpr bool owns_keys = OwnsKeys;
  static constexpr int own_bytes = 2 * own * D * 2, stage_bytes = 2 * moving * D * 2;
  /// Panels begin at multiples of 1024 bytes.
  static constexpr int shared_bytes = 2 * own_bytes + stages * (stage_bytes + (OwnsKeys ? moving * 8 : 0)) + 1024;
};

#ifdef __CUDACC__

/// Where heads lie for the copy engine: `own` are the rows that a block keeps (keys and values, or queries and dout).
struct WarpgroupMaps {
  CUtensorMap own[2], moving[2];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A piece of work: 128 rows of one head of one sequence, and the tiles that they meet.
template <class Tile, class R>
struct WarpgroupPiece {
  int b, head, first;     ///< sequence; head of the rows that are owned; the first of them
  int begin, end;         ///< tiles of a head
  int partner, partners;  ///< first head of the tiles, and how many

  __device__ WarpgroupPiece(const AttentionTiles<typename Tile::Element, R>& a, int number) {
    const int group = a.heads / a.kv_heads, rows = Tile::owns_keys ? a.keys : a.context;
    const int blocks = (rows + Tile::own - 1) / Tile::own, heads = Tile::owns_keys ? a.kv_heads : a.heads;
    const int pair = number / blocks, block = number % blocks;  // what meets the most tiles comes first
    b = pair / heads, head = pair % heads;
    if constexpr (Tile::owns_keys) {
      first = block * Tile::own;
      end = (a.context + Tile::moving - 1) / Tile::moving;
      begin = min(max(first - a.offset, 0) / Tile::moving, end - 1);
      partner = head * group, partners = group;
    } else {
      first = (blocks - 1 - block) * Tile::own;
      const int seen = min(first + Tile::own + a.offset, a.keys);
      begin = 0, end = max((seen + Tile::moving - 1) / Tile::moving, 1);  // one, all masked, where none is seen
      partner = head / group, partners = 1;
    }
  }
};

/// Stores a warp's 16 rows of c [64, D] times `factor`: row `row` of the thread's, and the one 8 further, go to number
/// first + row of `to` if that is below `end`. `through`: the warpgroup's rows of a panel of `Rows`, to be written
/// over.
template <int D, int Rows, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float factor, T* through, T* to, std::int64_t stride, int first,
                           int row, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto piece = [&](int r, int number) {
    return through + number / 8 * Rows * 64 + r * 64 + (number ^ r) % 8 * 8;
  };
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<unsigned*>(piece(row + half * 8, n) + lane % 4 * 2) =
          packed<T>(c[n][half * 2] * factor, c[n][half * 2 + 1] * factor);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
    const int i = n * 32 + lane, r = row - lane / 4 + i / (D / 8), number = i % (D / 8);
    if (first + r < end)
      *reinterpret_cast<uint4*>(to + (first + r) * stride + number * 8) =
          *reinterpret_cast<const uint4*>(piece(r, number));
  }
}
/// The same in float: as the registers lie.
template <int D, int Rows, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float factor, T*, float* to, std::int64_t stride, int first,
                           int row, int end) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (const int r = first + row + half * 8; r < end)
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<float2*>(to + r * stride + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2) = {
            c[n][half * 2] * factor, c[n][half * 2 + 1] * factor};
}

#endif

/// rows of AttentionTiles as always; `counter`: 0, `pieces` pieces of work. Grid: as many blocks as there are
/// multiprocessors.
template <class Tile, class R>
__global__ void __launch_bounds__(Tile::threads, 1)
    attention_backward_warpgroups(const AttentionTiles<typename Tile::Element, R> a,
                                  const __grid_constant__ WarpgroupMaps maps, unsigned* counter, int pieces) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename Tile::Element;
  constexpr int D = Tile::head_size, N = Tile::moving, stages = Tile::stages, panels = D / 64;
  constexpr int own_panel = Tile::own * 64, moving_panel = N * 64;
  constexpr bool owns_keys = Tile::owns_keys;
  __shared__ PhaseBarrier own_full[2], own_empty[2], full[stages], empty[stages];
  __shared__ int piece_of[2];
  extern __shared__ uint4 attention_shared[];
  T* const own = reinterpret_cast<T*>(attention_shared) + (1024 - shared_address(attention_shared) % 1024) % 1024 / 2;
  T* const moving = own + Tile::own_bytes;  // two, of 2 bytes an element
  float2* const rows = reinterpret_cast<float2*>(moving + stages * (Tile::stage_bytes / 2));

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) own_full[i].make(1), own_empty[i].make(8);
    for (int i = 0; i < stages; ++i) full[i].make(owns_keys ? 33 : 1), empty[i].make(8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp > 8) return;
    int step = 0;
    for (int n = 0;; ++n) {
      const int number = __shfl_sync(~0u, lane == 0 ? static_cast<int>(atomicAdd(counter, 1u)) : 0, 0), at = n % 2;
      own_empty[at].wait(n / 2 - 1);
      if (number >= pieces) {
        if (lane == 0) piece_of[at] = -1, own_full[at].arrive();
        return;
      }
      const WarpgroupPiece<Tile, R> piece(a, number);
      if (lane == 0) {
        piece_of[at] = number;
        own_full[at].expect(Tile::own_bytes);
        for (int which = 0; which < 2; ++which)
          for (int p = 0; p < panels; ++p)
            copy_panel(own + at * Tile::own_bytes / 2 + (which * panels + p) * own_panel, maps.own[which], p * 64,
                       piece.head, piece.first, piece.b, own_full[at]);
      }
      for (int partner = piece.partner; partner < piece.partner + piece.partners; ++partner)
        for (int tile = piece.begin; tile < piece.end; ++tile, ++step) {
          const int stage = step % stages;
          empty[stage].wait(step / stages - 1);
          if (lane == 0) {
            full[stage].expect(Tile::stage_bytes);
            for (int which = 0; which < 2; ++which)
              for (int p = 0; p < panels; ++p)
                copy_panel(moving + stage * (Tile::stage_bytes / 2) + (which * panels + p) * moving_panel,
                           maps.moving[which], p * 64, partner, tile * N, piece.b, full[stage]);
          }
          if constexpr (owns_keys) {
            const float* const from = a.rows + 2 * (std::int64_t{piece.b} * a.heads + partner) * a.context;
            for (int row = lane; row < N; row += 32) {
              const int query = tile * N + row;
              const bool there = query < a.context;
              copy_8(rows + stage * N + row, from + 2 * (there ? query : 0), there);
            }
            full[stage].arrive_after_copies();
          }
        }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int group = warp / 4, row = warp % 4 * 16 + lane / 4;  // of the group's 64, and 8 more
    int step = 0;
    for (int n = 0;; ++n) {
      const int at = n % 2;
      own_full[at].wait(n / 2);
      const int number = piece_of[at];
      if (number < 0) return;
      const WarpgroupPiece<Tile, R> piece(a, number);
      T* const own_0 = own + at * (Tile::own_bytes / 2) + group * 64 * 64;
      T* const own_1 = own_0 + panels * own_panel;
      const int first = piece.first + group * 64;
      const int tiles = piece.end - piece.begin, steps = tiles * piece.partners;

      float shift[2] = {}, delta[2] = {};  // of this thread's queries
      if constexpr (!owns_keys) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int query = first + row + half * 8;
          if (query < a.context) {
            const float* const from = a.rows + 2 * ((std::int64_t{piece.b} * a.heads + piece.head) * a.context + query);
            shift[half] = from[0], delta[half] = from[1];
          }
        }
      }
      float of_first[D / 8][4] = {}, of_second[owns_keys ? D / 8 : 1][4] = {};  // dk or dq; dv
      float p[N / 8][4], ds[N / 8][4];
      const auto stage_of = [&](int i) { return moving + i % stages * (Tile::stage_bytes / 2); };

      full[step % stages].wait(step / stages);
      fence_products();
      product_of_rows<T, D, Tile::own, N>(p, own_0, stage_of(step));
      close_products();
      await_products<0>(p);

      const auto run = [&]<bool Last>(int tile, std::bool_constant<Last>) {
        const T *const moving_0 = stage_of(step), *const moving_1 = moving_0 + panels * moving_panel;
        fence_products();
        product_of_rows<T, D, Tile::own, N>(ds, own_1, moving_1);
        close_products();
        // Scores to probabilities. Of keys: rows are keys, columns queries; of queries: the other way round.
        const float2* const of_column = rows + step % stages * N + lane % 4 * 2;
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
        fence_products();
        if constexpr (owns_keys) add_product<T, D, N>(of_second, left_p, moving_1);
        add_product<T, D, N>(of_first, left_ds, moving_0);
        close_products();
        if constexpr (!Last) {  // the next scores, right behind
          full[(step + 1) % stages].wait((step + 1) / stages);
          fence_products();
          product_of_rows<T, D, Tile::own, N>(p, own_0, stage_of(step + 1));
          close_products();
        }
        await_products<0>(of_first);
        if constexpr (owns_keys) await_products<0>(of_second);
        if constexpr (!Last) await_products<0>(p);
        if (lane == 0) empty[step % stages].arrive();
        ++step;
      };
      int tile = piece.begin;
      for (int i = 1; i < steps; ++i) {
        run(tile, std::false_type());
        if (++tile == piece.end) tile = piece.begin;
      }
      run(tile, std::true_type());

      const auto b = std::int64_t{piece.b};
      const auto store = [&](const auto& c, float factor, T* through, const auto& to, int end) {
        store_rows<D, Tile::own>(c, factor, through, to.data + b * to.sequence + std::int64_t{piece.head} * D,
                                 to.stride, first, row, end);
      };
      meet(1 + group, 128);  // nobody's products read what is now written over
      store(of_first, a.scale, own_0, owns_keys ? a.dk : a.dq, owns_keys ? a.keys : a.context);
      if constexpr (owns_keys) store(of_second, 1.0f, own_1, a.dv, a.keys);
      fence_engines();
      __syncwarp();
      if (lane == 0) own_empty[at].arrive();
    }
  }
#endif
}

#endif

}  // namespace zeropp::kernels::detail
