// SPDX-License-Identifier: Apache-2.0
// Kernels of LayerNorm and RMSNorm; `Center` is LayerNorm. Rows that can be moved 16 bytes at a time stay in registers
// from the first read to the last write: forward a warp takes a row, backward a block takes four at a time and a thread
// keeps its columns, so that gradients of parameters add up in registers over all rows of the block. Other rows go
// element by element.
#pragma once

#include <cstdint>

#include <zeropp/base/dtype.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

namespace zeropp::kernels::detail {

inline constexpr int norm_threads = 256;

/// A forward pass: y = (x - mean) · rstd · gamma + beta, without mean and beta for RMSNorm.
template <class X, class W>
struct NormForward {
  const X* x;
  const W *gamma, *beta;
  compute_t<X> epsilon;
  X* y;
  compute_t<X>*mean, *rstd;
  std::int64_t n, width;
};

/// A backward pass; dx, onto and partials may be null. partials is [blocks, sums of gamma, then of beta].
template <class X, class W>
struct NormBackward {
  const X *dy, *x;
  const W* gamma;
  const compute_t<X>*mean, *rstd;
  const X* onto;
  X* dx;
  compute_t<X>* partials;
  std::int64_t n, width;

#ifdef __CUDACC__
  /// Rows of this block: as many as of any other, or one more.
  __device__ std::int64_t begin(std::int64_t block) const { return n * block / gridDim.x; }
#endif
};

#ifdef __CUDACC__

/// The sum over a block of up to 32 warps, in every thread. `part` has 32 places.
template <class C>
__device__ C block_sum(C value, C* part) {
  value = warp_sum(value);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
  __syncthreads();
  C sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += part[warp];
  return sum;
}

/// One warp a row of up to 32 · V vectors.
template <bool Center, int V, class X, class W>
__global__ void __launch_bounds__(norm_threads) norm_forward_kernel(NormForward<X, W> a) {
  using C = compute_t<X>;
  constexpr int N = vector_lanes<X>;
  const int lane = threadIdx.x % 32, vectors = static_cast<int>(a.width / N);
  const std::int64_t row = blockIdx.x * std::int64_t{norm_threads / 32} + threadIdx.x / 32;
  if (row >= a.n) return;
  const X* from = a.x + row * a.width;
  X* to = a.y + row * a.width;
  Lanes<X, N> x[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (lane + 32 * v < vectors) x[v] = Lanes<X, N>::load(from + (lane + 32 * v) * N);
  const auto mean_of = [&](auto f) {
    C sum = 0;
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (lane + 32 * v < vectors)
#pragma unroll
        for (int k = 0; k < N; ++k) sum += f(x[v][k]);
    return warp_sum(sum) / static_cast<C>(a.width);
  };
  C m = 0;
  if constexpr (Center) m = mean_of([](C value) { return value; });
  const C r = 1 / std::sqrt(mean_of([m](C value) { return (value - m) * (value - m); }) + a.epsilon);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int at = (lane + 32 * v) * N;
    if (lane + 32 * v >= vectors) continue;
    const auto g = Lanes<W, N>::load(a.gamma + at);
    C y[N];
#pragma unroll
    for (int k = 0; k < N; ++k) y[k] = (x[v][k] - m) * r * static_cast<C>(g[k]);
    if constexpr (Center) {
      const auto b = Lanes<W, N>::load(a.beta + at);
#pragma unroll
      for (int k = 0; k < N; ++k) y[k] += static_cast<C>(b[k]);
    }
    Lanes<X, N>::of(y).store(to + at);
  }
  if (lane) return;
  if constexpr (Center) a.mean[row] = m;
  a.rstd[row] = r;
}

/// Any width and alignment: one block a row, which is read again from the cache for each sum.
template <bool Center, class X, class W>
__global__ void __launch_bounds__(norm_threads) norm_forward_any_kernel(NormForward<X, W> a) {
  using C = compute_t<X>;
  __shared__ C part[32];
  for (std::int64_t row = blockIdx.x; row < a.n; row += gridDim.x) {
    const X* from = a.x + row * a.width;
    X* to = a.y + row * a.width;
    const auto mean_of = [&](auto f) {
      C sum = 0;
      for (std::int64_t i = threadIdx.x; i < a.width; i += blockDim.x) sum += f(static_cast<C>(from[i]));
      return block_sum(sum, part) / static_cast<C>(a.width);
    };
    C m = 0;
    if constexpr (Center) m = mean_of([](C value) { return value; });
    const C r = 1 / std::sqrt(mean_of([m](C value) { return (value - m) * (value - m); }) + a.epsilon);
    for (std::int64_t i = threadIdx.x; i < a.width; i += blockDim.x) {
      C y = (static_cast<C>(from[i]) - m) * r * static_cast<C>(a.gamma[i]);
      if constexpr (Center) y += static_cast<C>(a.beta[i]);
      to[i] = rounded<X>(y);
    }
    if (threadIdx.x) continue;
    if constexpr (Center) a.mean[row] = m;
    a.rstd[row] = r;
  }
}

/// A block of up to 256 threads takes R rows at a time; a thread has V vectors of columns, blockDim.x apart. With h the
/// normalised x and g = dy · gamma, dx = rstd · (g - mean(g) - h · mean(g · h)); RMSNorm has no mean(g).
template <bool Center, int V, class X, class W>
__global__ void __launch_bounds__(norm_threads, V == 4 ? 1 : 2) norm_backward_kernel(NormBackward<X, W> a) {
  using C = compute_t<X>;
  constexpr int N = vector_lanes<X>, R = 4 / V, S = Center ? 2 : 1, warps = norm_threads / 32;
  __shared__ alignas(16) C part[2][R][S][warps];  // twice, so that one barrier for R rows is enough
  const int vectors = static_cast<int>(a.width / N), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 2 * R * S * warps; i += blockDim.x) (&part[0][0][0][0])[i] = 0;
  __syncthreads();
  int column[V];
  bool here[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int vector = static_cast<int>(threadIdx.x + v * blockDim.x);
    here[v] = vector < vectors;
    column[v] = vector * N;
  }
  Lanes<W, N> gamma[V];
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (a.dx && here[v]) gamma[v] = Lanes<W, N>::load(a.gamma + column[v]);
  C sum_gamma[V][N] = {}, sum_beta[V][N] = {};
  const std::int64_t end = a.begin(blockIdx.x + 1);
  int side = 0;
  for (std::int64_t row = a.begin(blockIdx.x); row < end; row += R, side ^= 1) {
    const int rows = end - row < R ? static_cast<int>(end - row) : R;
    Lanes<X, N> dy[R][V], x[R][V], onto[R][V];
    C m[R], r[R];
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= rows) continue;
      m[j] = 0;
      if constexpr (Center) m[j] = a.mean[row + j];
      r[j] = a.rstd[row + j];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (!here[v]) continue;
        const std::int64_t at = (row + j) * a.width + column[v];
        dy[j][v] = Lanes<X, N>::load(a.dy + at);
        x[j][v] = Lanes<X, N>::load(a.x + at);
        if (a.onto) onto[j][v] = Lanes<X, N>::load(a.onto + at);
      }
    }
    C sum[R][S] = {};
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= rows) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (!here[v]) continue;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const C d = dy[j][v][k], h = (x[j][v][k] - m[j]) * r[j], g = d * static_cast<C>(gamma[v][k]);
          sum_gamma[v][k] += d * h;
          sum[j][S - 1] += g * h;
          if constexpr (Center) {
            sum_beta[v][k] += d;
            sum[j][0] += g;
          }
        }
      }
    }
    if (!a.dx) continue;
#pragma unroll
    for (int j = 0; j < R; ++j)
#pragma unroll
      for (int s = 0; s < S; ++s) {
        sum[j][s] = warp_sum(sum[j][s]);
        if (lane == 0) part[side][j][s][warp] = sum[j][s];
      }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= rows) continue;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        C total = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) total += part[side][j][s][w];
        sum[j][s] = total / static_cast<C>(a.width);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (!here[v]) continue;
        C dx[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const C h = (x[j][v][k] - m[j]) * r[j];
          C inner = dy[j][v][k] * static_cast<C>(gamma[v][k]) - h * sum[j][S - 1];
          if constexpr (Center) inner -= sum[j][0];
          dx[k] = r[j] * inner;
          if (a.onto) dx[k] += onto[j][v][k];
        }
        Lanes<X, N>::of(dx).store(a.dx + (row + j) * a.width + column[v]);
      }
    }
  }
  if (!a.partials) return;
  C* to = a.partials + blockIdx.x * S * a.width;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (!here[v]) continue;
    Lanes<C, N>::of(sum_gamma[v]).store(to + column[v]);
    if constexpr (Center) Lanes<C, N>::of(sum_beta[v]).store(to + a.width + column[v]);
  }
}

/// Any width and alignment: one row at a time, sums of the block kept in its part of `partials`.
template <bool Center, class X, class W>
__global__ void __launch_bounds__(norm_threads) norm_backward_any_kernel(NormBackward<X, W> a) {
  using C = compute_t<X>;
  __shared__ C part[32];
  constexpr int S = Center ? 2 : 1;
  C* sums = a.partials ? a.partials + blockIdx.x * S * a.width : nullptr;
  for (std::int64_t i = threadIdx.x; sums && i < a.width; i += blockDim.x) {
    sums[i] = 0;
    if constexpr (Center) sums[a.width + i] = 0;
  }
  const std::int64_t end = a.begin(blockIdx.x + 1);
  for (std::int64_t row = a.begin(blockIdx.x); row < end; ++row) {
    const X *dy = a.dy + row * a.width, *x = a.x + row * a.width;
    C m = 0;
    if constexpr (Center) m = a.mean[row];
    const C r = a.rstd[row];
    C mean_g = 0, mean_gh = 0;
    for (std::int64_t i = threadIdx.x; i < a.width; i += blockDim.x) {
      const C d = static_cast<C>(dy[i]), h = (static_cast<C>(x[i]) - m) * r;
      if (sums) sums[i] += d * h;
      if constexpr (Center)
        if (sums) sums[a.width + i] += d;
      if (!a.dx) continue;
      const C g = d * static_cast<C>(a.gamma[i]);
      mean_g += g;
      mean_gh += g * h;
    }
    if (!a.dx) continue;
    mean_gh = block_sum(mean_gh, part) / static_cast<C>(a.width);
    if constexpr (Center) mean_g = block_sum(mean_g, part) / static_cast<C>(a.width);
    for (std::int64_t i = threadIdx.x; i < a.width; i += blockDim.x) {
      const C h = (static_cast<C>(x[i]) - m) * r;
      C inner = static_cast<C>(dy[i]) * static_cast<C>(a.gamma[i]) - h * mean_gh;
      if constexpr (Center) inner -= mean_g;
      inner *= r;
      if (a.onto) inner += static_cast<C>(a.onto[row * a.width + i]);
      a.dx[row * a.width + i] = rounded<X>(inner);
    }
  }
}

#endif

}  // namespace zeropp::kernels::detail
