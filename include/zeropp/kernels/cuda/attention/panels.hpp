// SPDX-License-Identifier: Apache-2.0
// Panels of rows [count, D] of one head in shared memory, and their products by one warp, which owns `Atoms` times 16
// rows of the result.
#pragma once

#include <zeropp/kernels/cuda/attention/parts.hpp>

namespace zeropp::kernels::detail {

/// Rows and heads as attention on tensor cores gets them; all in elements. Results are of type R: T, or the float that
/// computes.
template <class T, class R = T>
struct AttentionTiles {
  struct In {
    const T* data;
    std::int64_t stride, sequence;
  };
  struct Out {
    R* data;
    std::int64_t stride, sequence;
  };
  In q, k, v;
  Out out;                 ///< forward only, and so is
  float* lse;              ///< [B, H, T]
  In saved_out, dout;      ///< backward only, and so is the rest
  const float* saved_lse;  ///< [B, H, T]
  float* rows;             ///< [B, H, T, 2]: log-sum-exp in base 2, rowsum(dO ∘ O)
  Out dq, dk, dv;
  int sequence, keys, offset;  ///< positions of queries and of keys; query t sees the keys up to number t + offset
  int heads, kv_heads;
  float scale;  ///< 1 / √D
};

inline constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
template <int D>
inline constexpr int panel_stride = D + 8;

#ifdef __CUDACC__

/// Rows [first, first + Count) of `from`, a head of a sequence with `end` rows; zeros from there on.
template <int D, int Count, int Threads, class T>
__device__ void load_panel(T* to, const T* from, std::int64_t stride, int first, int end) {
  constexpr int pieces = D / 8, step = Threads / pieces;  // rows at a time
  static_assert(Threads % pieces == 0 && Count % step == 0);
  const int row = static_cast<int>(threadIdx.x) / pieces, piece = static_cast<int>(threadIdx.x) % pieces;
  to += row * panel_stride<D> + piece * 8;
  from += piece * 8;
#pragma unroll
  for (int n = 0; n < Count; n += step) {
    const int at = first + row + n;
    copy_16(to + n * panel_stride<D>, from + (at < end ? at : 0) * stride, at < end);
  }
}

/// c [Atoms · 16, Columns] = a · bᵀ: `a` points to the warp's rows of a panel, `b` to a panel of `Columns` rows.
template <int D, int Atoms, int Columns, class T>
__device__ void multiply_rows(float (&c)[Atoms][Columns / 8][4], const T* a, const T* b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  a += (lane & 15) * panel_stride<D> + (lane >> 4) * 8;
  b += ((lane & 7) + (lane >> 4) * 8) * panel_stride<D> + ((lane >> 3) & 1) * 8;
#pragma unroll
  for (int i = 0; i < Atoms; ++i)
#pragma unroll
    for (int n = 0; n < Columns / 8; ++n) c[i][n][0] = c[i][n][1] = c[i][n][2] = c[i][n][3] = 0;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    unsigned left[Atoms][4];
#pragma unroll
    for (int i = 0; i < Atoms; ++i) load_matrices(left[i], a + i * 16 * panel_stride<D> + d);
#pragma unroll
    for (int n = 0; n < Columns; n += 16) {
      unsigned right[4];
      load_matrices(right, b + n * panel_stride<D> + d);
#pragma unroll
      for (int i = 0; i < Atoms; ++i) {
        multiply<T>(c[i][n / 8], left[i], right[0], right[1]);
        multiply<T>(c[i][n / 8 + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// c [Atoms · 16, D] += a · b, with `a` the result of a product (rounded to T) and `b` a panel of `Depth` rows.
template <int D, int Atoms, int Depth, class T>
__device__ void multiply_add(float (&c)[Atoms][D / 8][4], const float (&a)[Atoms][Depth / 8][4], const T* b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  b += (lane & 15) * panel_stride<D> + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < Depth / 8; k += 2) {
    unsigned left[Atoms][4];
#pragma unroll
    for (int i = 0; i < Atoms; ++i)
#pragma unroll
      for (int part = 0; part < 4; ++part)
        left[i][part] = packed<T>(a[i][k + part / 2][part % 2 * 2], a[i][k + part / 2][part % 2 * 2 + 1]);
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      unsigned right[4];
      load_matrices_transposed(right, b + k * 8 * panel_stride<D> + d);
#pragma unroll
      for (int i = 0; i < Atoms; ++i) {
        multiply<T>(c[i][d / 8], left[i], right[0], right[1]);
        multiply<T>(c[i][d / 8 + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// Stores c [Atoms · 16, D], row r times factor[r / 16][r / 8 % 2], as rows [first, …) of `to` below `end`, through
/// `staging`: rows of a panel that this warp alone uses.
template <int D, int Atoms, class T>
__device__ void store_panel(const float (&c)[Atoms][D / 8][4], const float (&factor)[Atoms][2], T* staging, T* to,
                            std::int64_t stride, int first, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Atoms; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T* row = staging + (i * 16 + half * 8 + lane / 4) * panel_stride<D> + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<unsigned*>(row + n * 8) =
            packed<T>(c[i][n][half * 2] * factor[i][half], c[i][n][half * 2 + 1] * factor[i][half]);
    }
  __syncwarp();
  constexpr int pieces = D / 8;
#pragma unroll
  for (int n = 0; n < Atoms * 16 * pieces / 32; ++n) {
    const int i = n * 32 + lane, row = i / pieces, piece = i % pieces;
    if (first + row < end)
      *reinterpret_cast<uint4*>(to + (first + row) * stride + piece * 8) =
          *reinterpret_cast<const uint4*>(staging + row * panel_stride<D> + piece * 8);
  }
}

/// The same in float: as the registers lie.
template <int D, int Atoms, class T>
__device__ void store_panel(const float (&c)[Atoms][D / 8][4], const float (&factor)[Atoms][2], T*, float* to,
                            std::int64_t stride, int first, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Atoms; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + i * 16 + half * 8 + lane / 4;
      if (row >= end) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<float2*>(to + row * stride + n * 8 + lane % 4 * 2) = {
            c[i][n][half * 2] * factor[i][half], c[i][n][half * 2 + 1] * factor[i][half]};
    }
}

#endif

}  // namespace zeropp::kernels::detail
