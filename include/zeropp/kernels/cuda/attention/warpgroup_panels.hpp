// SPDX-License-Identifier: Apache-2.0
// How attention on Hopper is cut into work: a block of two warpgroups owns 128 rows of a head, 64 each, and meets rows
// of the other side tile by tile; one warp more (its warpgroup's other three end at once) brings both from memory
// through the copy engine, always some tiles ahead. Blocks stay on their multiprocessor and take pieces of work from a
// counter, so that none waits for its first bytes; which block has a piece changes no bit of it.
#pragma once

#include <algorithm>

#include <zeropp/kernels/cuda/attention/panels.hpp>
#include <zeropp/kernels/cuda/attention/tensor_copies.hpp>
#include <zeropp/kernels/cuda/attention/warpgroup.hpp>

namespace zeropp::kernels::detail {

enum class Owns {
  queries,            ///< forward: outputs of 128 queries from all keys that they see
  queries_gradients,  ///< dq of 128 queries from all keys that they see; keeps dout beside the queries
  keys_gradients      ///< dk and dv of 128 keys from all queries that see them; keeps keys and values
};

/// `Moving` rows of the other side at a time, `Stages` such tiles and `Buffers` pieces of own rows in shared memory.
template <class T, int D, Owns What, int Moving, int Stages, int Buffers>
struct WarpgroupTile {
  using Element = T;
  static constexpr int head_size = D, own = 128, moving = Moving, stages = Stages, buffers = Buffers, threads = 384;
  static constexpr bool owns_keys = What == Owns::keys_gradients;
  static constexpr int own_tensors = What == Owns::queries ? 1 : 2;
  static constexpr int panels = D / 64, own_panel = own * 64, moving_panel = Moving * 64;  ///< elements of a panel
  static constexpr int own_size = own_tensors * own * D, stage_size = 2 * Moving * D;      ///< elements
  static constexpr int shared_bytes =
      2 * (Buffers * own_size + Stages * stage_size) + (owns_keys ? Stages * Moving * 8 : 0);
  static_assert(shared_bytes <= 226 * 1024);  // with one for barriers, all that a block can have
};
template <class T, int D>
using ForwardWarpgroups = WarpgroupTile<T, D, Owns::queries, 128, D == 64 ? 4 : 3, D == 64 ? 2 : 1>;
template <class T, int D>
using QueryWarpgroups = WarpgroupTile<T, D, Owns::queries_gradients, D == 64 ? 128 : 64, D == 64 ? 4 : 3, 2>;
template <class T, int D>
using KeyWarpgroups = WarpgroupTile<T, D, Owns::keys_gradients, D == 64 ? 128 : 64, D == 64 ? 4 : 3, 2>;

#ifdef __CUDACC__

/// The arguments of a kernel. `own`: queries (and dout), or keys and values; `moving`: the others.
struct WarpgroupWork {
  CUtensorMap own[2], moving[2];
  unsigned* counter;     ///< of the pieces that are taken, 0 at the start
  int pieces, together;  ///< how many there are; heads whose pieces are mixed, longest first
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// 128 rows of one head of one sequence, and the tiles that they meet.
template <class Tile>
struct WarpgroupPiece {
  int b, head, first;     ///< sequence; head of the own rows; the first of them
  int begin, end;         ///< tiles of one head
  int partner, partners;  ///< first head of the tiles, and how many

  template <class T, class R>
  __device__ WarpgroupPiece(const AttentionTiles<T, R>& a, const WarpgroupWork& work, int number) {
    const int group = a.heads / a.kv_heads, heads = Tile::owns_keys ? a.kv_heads : a.heads;
    const int blocks = ((Tile::owns_keys ? a.keys : a.sequence) + Tile::own - 1) / Tile::own;
    const int mixed = number / (work.together * blocks) * work.together, rest = number - mixed * blocks;
    const int together = min(work.together, work.pieces / blocks - mixed);
    const int pair = mixed + rest % together, block = rest / together;  // what meets the most tiles comes first
    b = pair / heads, head = pair % heads;
    if constexpr (Tile::owns_keys) {
      first = block * Tile::own;
      end = (a.sequence + Tile::moving - 1) / Tile::moving;
      begin = min(max(first - a.offset, 0) / Tile::moving, end - 1);  // one, all masked, where no query sees them
      partner = head * group, partners = group;
    } else {
      first = (blocks - 1 - block) * Tile::own;
      const int seen = min(first + Tile::own + a.offset, a.keys);
      begin = 0, end = max((seen + Tile::moving - 1) / Tile::moving, 1);
      partner = head / group, partners = 1;
    }
  }
};

/// A block's shared memory: rings of own rows and of tiles, each place with a barrier for "there" and for "free again".
template <class Tile>
struct WarpgroupRings {
  using T = typename Tile::Element;
  PhaseBarrier own_full[Tile::buffers], own_empty[Tile::buffers], full[Tile::stages], empty[Tile::stages];
  int piece[Tile::buffers];  ///< its number; −1: no more

  /// By all threads of the block.
  __device__ void make() {
    if (threadIdx.x == 0) {
      if (shared_address(own(0)) % 1024 != 0) __trap();
      for (int i = 0; i < Tile::buffers; ++i) own_full[i].make(1), own_empty[i].make(8);
      for (int i = 0; i < Tile::stages; ++i) full[i].make(Tile::owns_keys ? 33 : 1), empty[i].make(8);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
  }
  static __device__ T* own(int n) {  ///< tensor by tensor, each panel by panel
    extern __shared__ __align__(1024) unsigned char attention_panels[];
    return reinterpret_cast<T*>(attention_panels) + n % Tile::buffers * Tile::own_size;
  }
  static __device__ T* tile(int step) {
    return own(0) + Tile::buffers * Tile::own_size + step % Tile::stages * Tile::stage_size;
  }
  static __device__ float2* rows(int step) {  ///< of AttentionTiles, for a tile of queries
    return reinterpret_cast<float2*>(own(0) + Tile::buffers * Tile::own_size + Tile::stages * Tile::stage_size) +
           step % Tile::stages * Tile::moving;
  }
  /// Waits for a block's n-th piece; its number. Read by the lane that will arrive at the barrier for "free again".
  __device__ int wait_own(int n) {
    own_full[n % Tile::buffers].wait(n / Tile::buffers);
    return __shfl_sync(~0u, threadIdx.x % 32 == 0 ? piece[n % Tile::buffers] : 0, 0);
  }
  __device__ void wait(int step) { full[step % Tile::stages].wait(step / Tile::stages); }
  /// By all lanes of each of the eight warps that compute.
  __device__ void release_own(int n) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) own_empty[n % Tile::buffers].arrive();
  }
  __device__ void release(int step) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) empty[step % Tile::stages].arrive();
  }

  static __device__ void copy(T* to, const CUtensorMap& map, int panel, int h, int first, int b,
                              PhaseBarrier& barrier) {
    for (int p = 0; p < Tile::panels; ++p) copy_panel(to + p * panel, map, p * 64, h, first, b, barrier);
  }
  /// By one warp: takes pieces until there are no more and brings what they need.
  template <class R>
  __device__ void bring(const AttentionTiles<T, R>& a, const WarpgroupWork& work) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int step = 0;
    for (int n = 0;; ++n) {
      const int number = __shfl_sync(~0u, lane == 0 ? static_cast<int>(atomicAdd(work.counter, 1u)) : 0, 0);
      const int at = n % Tile::buffers;
      own_empty[at].wait(n / Tile::buffers - 1);
      if (number >= work.pieces) {
        if (lane == 0) piece[at] = -1, own_full[at].arrive();
        return;
      }
      const WarpgroupPiece<Tile> of(a, work, number);
      if (lane == 0) {
        piece[at] = number;
        own_full[at].expect(2 * Tile::own_size);
        for (int i = 0; i < Tile::own_tensors; ++i)
          copy(own(n) + i * Tile::own * Tile::head_size, work.own[i], Tile::own_panel, of.head, of.first, of.b,
               own_full[at]);
      }
      if constexpr (Tile::own_tensors == 2 && !Tile::owns_keys) {  // the outputs, which its threads will read
        for (int i = lane; i < Tile::own * Tile::panels; i += 32) {
          const int query = min(of.first + i / Tile::panels, a.sequence - 1);
          const T* const from = a.saved_out.data + std::int64_t{of.b} * a.saved_out.sequence +
                                query * a.saved_out.stride + std::int64_t{of.head} * Tile::head_size +
                                i % Tile::panels * 64;
          asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
        }
      }
      for (int partner = of.partner; partner < of.partner + of.partners; ++partner)
        for (int t = of.begin; t < of.end; ++t, ++step) {
          PhaseBarrier& barrier = full[step % Tile::stages];
          empty[step % Tile::stages].wait(step / Tile::stages - 1);
          if (lane == 0) {
            barrier.expect(2 * Tile::stage_size);
            for (int i = 0; i < 2; ++i)
              copy(tile(step) + i * Tile::moving * Tile::head_size, work.moving[i], Tile::moving_panel, partner,
                   t * Tile::moving, of.b, barrier);
          }
          if constexpr (Tile::owns_keys) {
            const float* const from = a.rows + 2 * (std::int64_t{of.b} * a.heads + partner) * a.sequence;
            for (int row = lane; row < Tile::moving; row += 32) {
              const int query = t * Tile::moving + row;
              const bool there = query < a.sequence;
              copy_8(rows(step) + row, from + 2 * (there ? query : 0), there);
            }
            barrier.arrive_after_copies();
          }
        }
    }
  }
};

/// Where 8 elements of row r lie: piece `number` of a panel of `Rows`, see warpgroup.hpp.
template <int Rows, class T>
__device__ T* piece_of_row(T* panel, int r, int number) {
  return panel + number / 8 * Rows * 64 + r * 64 + (number ^ r) % 8 * 8;
}

/// Stores a warpgroup's c [64, D], rows times `factor` (of this thread's rows `row` and row + 8), as rows number
/// first + … of `to` below `end`. `through`: its rows of a panel of `Rows` that nobody reads any more.
template <int D, int Rows, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float2 factor, T* through, T* to, std::int64_t stride, int first,
                           int row, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    T* const low = piece_of_row<Rows>(through, row, n) + lane % 4 * 2;
    T* const high = piece_of_row<Rows>(through, row + 8, n) + lane % 4 * 2;
    *reinterpret_cast<unsigned*>(low) = packed<T>(c[n][0] * factor.x, c[n][1] * factor.x);
    *reinterpret_cast<unsigned*>(high) = packed<T>(c[n][2] * factor.y, c[n][3] * factor.y);
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 16; ++n) {
    const int i = n * 32 + lane, r = row - lane / 4 + i / (D / 8), number = i % (D / 8);
    if (first + r < end)
      *reinterpret_cast<uint4*>(to + (first + r) * stride + number * 8) =
          *reinterpret_cast<const uint4*>(piece_of_row<Rows>(through, r, number));
  }
}
/// The same in float: as the registers lie.
template <int D, int Rows, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float2 factor, T*, float* to, std::int64_t stride, int first,
                           int row, int end) {
  to += static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    if (const int r = first + row; r < end)
      *reinterpret_cast<float2*>(to + r * stride + n * 8) = {c[n][0] * factor.x, c[n][1] * factor.x};
    if (const int r = first + row + 8; r < end)
      *reinterpret_cast<float2*>(to + r * stride + n * 8) = {c[n][2] * factor.y, c[n][3] * factor.y};
  }
}

#endif
#endif

}  // namespace zeropp::kernels::detail
