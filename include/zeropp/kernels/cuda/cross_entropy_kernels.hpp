// SPDX-License-Identifier: Apache-2.0
// The cross entropy of rows of logits: a block of threads has a row, holds it in shared memory, reads it once and
// writes its gradient in its place once. Rows begin on 16 bytes and are padded to whole packs of 16.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/matmul_kernels.hpp>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#endif

namespace zeropp::kernels::detail {

/// Rows of logits in memory, and their labels. Columns from `used` on are not real.
template <class T>
struct LogitRows {
  T* logits;
  std::int64_t rows, stride, used;
  const std::int32_t* labels;
};

/// losses[r] = −log softmax(row r)[label], 0 for a label that does not count; with Gradient the row becomes
/// scale · (softmax − one-hot), 0 where it does not count.
template <bool Gradient, class T>
void launch_cross_entropy(const LogitRows<T>& of, double* losses, double scale, cudaStream_t stream);

#ifdef __CUDACC__

inline constexpr int logits_threads = 512;

/// e^x: the hardware's to 2^−22 for logits of 16 bits, the library's for others.
template <class T>
__device__ compute_t<T> exponential(compute_t<T> x) {
  if constexpr (is_half<T>) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
  } else if constexpr (std::is_same_v<T, float>) {
    return ::expf(x);
  } else {
    return ::exp(x);
  }
}

template <class T>
inline constexpr int pack_size = static_cast<int>(16 / sizeof(T));
template <class T>
using RowPack = Pack<T, pack_size<T>>;

template <class T>
__device__ void unpack(const RowPack<T>& from, compute_t<T> (&to)[pack_size<T>]) {
#pragma unroll
  for (int j = 0; j < pack_size<T>; ++j) to[j] = static_cast<compute_t<T>>(from.at[j]);
}
template <class T>
__device__ RowPack<T> packed(const compute_t<T> (&from)[pack_size<T>]) {
  RowPack<T> to;
  if constexpr (is_half<T>) {
    decltype(rounded_pair<T>(0, 0)) pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = rounded_pair<T>(from[2 * j], from[2 * j + 1]);
    static_assert(sizeof pairs == sizeof to);
    memcpy(&to, pairs, sizeof to);
  } else {
#pragma unroll
    for (int j = 0; j < pack_size<T>; ++j) to.at[j] = from[j];
  }
  return to;
}

/// The greatest of some logits, and the sum of exp(logit − greatest).
template <class T>
struct RowTop {
  using C = compute_t<T>;
  C highest, sum;

  static __device__ C nothing() { return -std::numeric_limits<C>::infinity(); }

  /// The first `count` logits of a pack.
  __device__ void take(const RowPack<T>& pack, std::int64_t count) {
    constexpr int n = pack_size<T>;
    C x[n];
    unpack<T>(pack, x);
    if (count < n) {
#pragma unroll
      for (int j = 0; j < n; ++j)
        if (j >= count) x[j] = nothing();
    }
    C top = x[0];
#pragma unroll
    for (int j = 1; j < n; ++j) top = x[j] > top ? x[j] : top;
    if (top > highest) {
      sum *= exponential<T>(highest - top);
      highest = top;
    }
#pragma unroll
    for (int j = 0; j < n; ++j) x[j] = exponential<T>(x[j] - highest);
#pragma unroll
    for (int half = n / 2; half > 0; half /= 2)
#pragma unroll
      for (int j = 0; j < half; ++j) x[j] += x[j + half];
    sum += x[0];
  }
  __device__ void join(RowTop other) {
    const C top = other.highest > highest ? other.highest : highest;
    if (top == nothing()) return;  // neither has seen any
    sum = sum * exponential<T>(highest - top) + other.sum * exponential<T>(other.highest - top);
    highest = top;
  }
};

/// Joins the threads' parts in a fixed order; all threads get the result.
template <class T>
__device__ RowTop<T> join_threads(RowTop<T> top) {
  constexpr int warps = logits_threads / 32;
  __shared__ RowTop<T> parts[warps], whole;
  const auto down = [&](int by) {
    top.join({__shfl_down_sync(~0u, top.highest, by), __shfl_down_sync(~0u, top.sum, by)});
  };
#pragma unroll
  for (int by = 16; by > 0; by /= 2) down(by);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = top;
  __syncthreads();
  if (threadIdx.x < 32) {
    top = threadIdx.x < warps ? parts[threadIdx.x] : RowTop<T>{RowTop<T>::nothing(), 0};
#pragma unroll
    for (int by = warps / 2; by > 0; by /= 2) down(by);
    if (threadIdx.x == 0) whole = top;
  }
  __syncthreads();
  return whole;
}

/// A pack of logits, `real` of them real, becomes factor · exp(logit − highest), less `scale` at `label` if that is one
/// of them.
template <class T>
__device__ RowPack<T> gradient_of(const RowPack<T>& pack, std::int64_t real, compute_t<T> highest, compute_t<T> factor,
                                  std::int64_t label, compute_t<T> scale) {
  constexpr int n = pack_size<T>;
  compute_t<T> x[n];
  unpack<T>(pack, x);
#pragma unroll
  for (int j = 0; j < n; ++j) x[j] = factor * exponential<T>(x[j] - highest);
  if (real < n) {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j >= real) x[j] = 0;
  }
  if (label >= 0 && label < n) {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j == label) x[j] -= scale;
  }
  return packed<T>(x);
}

inline __device__ void copy_async(void* shared, const void* global) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
}
inline __device__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Open>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Open) : "memory");
}

/// One block a row. `held` packs of it stay in shared memory, the rest is read twice.
template <bool Gradient, class T>
__global__ void __launch_bounds__(logits_threads, 2)
    cross_entropy_rows(LogitRows<T> of, double* losses, compute_t<T> scale, int held) {
  constexpr int n = pack_size<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* const copy = reinterpret_cast<RowPack<T>*>(memory);
  T* const logits = of.logits + blockIdx.x * of.stride;
  auto* const row = reinterpret_cast<RowPack<T>*>(logits);
  const int me = static_cast<int>(threadIdx.x), packs = static_cast<int>(of.stride / n);
  const std::int64_t label = of.labels[blockIdx.x];
  if (label < 0 || label >= of.used) {
    if constexpr (Gradient)
      for (int i = me; i < packs; i += logits_threads) row[i] = RowPack<T>{};
    if (me == 0) losses[blockIdx.x] = 0;
    return;
  }
  const int reach = static_cast<int>(ceil_div(of.used, n)), kept = Gradient ? min(held, reach) : 0;
  const auto real = [&](int i) { return of.used - static_cast<std::int64_t>(i) * n; };
  // A thread copies what it reads itself: no barrier. The second half arrives while the first is summed.
  const int half = ceil_div(kept, 2 * logits_threads) * logits_threads;
  for (int i = me; i < min(half, kept); i += logits_threads) copy_async(&copy[i], &row[i]);
  close_copies();
  for (int i = half + me; i < kept; i += logits_threads) copy_async(&copy[i], &row[i]);
  close_copies();
  double target = 0;
  if (me == 0) target = static_cast<double>(static_cast<compute_t<T>>(logits[label]));  // before it is overwritten
  RowTop<T> top{RowTop<T>::nothing(), 0};
  wait_copies<1>();
  for (int i = me; i < min(half, kept); i += logits_threads) top.take(copy[i], real(i));
  wait_copies<0>();
  for (int i = half + me; i < kept; i += logits_threads) top.take(copy[i], real(i));
#pragma unroll 4
  for (int i = kept + me; i < reach; i += logits_threads) top.take(row[i], real(i));
  top = join_threads(top);
  if constexpr (Gradient) {
    const auto factor = scale / top.sum;
    const auto gradient = [&](int i, const RowPack<T>& pack) {
      return gradient_of<T>(pack, real(i), top.highest, factor, label - static_cast<std::int64_t>(i) * n, scale);
    };
    int i = me;
    for (; i < kept; i += logits_threads) row[i] = gradient(i, copy[i]);
    for (; i < reach; i += logits_threads) row[i] = gradient(i, row[i]);
    for (; i < packs; i += logits_threads) row[i] = RowPack<T>{};
  }
  if (me == 0) losses[blockIdx.x] = ::log(static_cast<double>(top.sum)) + static_cast<double>(top.highest) - target;
}

template <bool Gradient, class T>
void launch_cross_entropy(const LogitRows<T>& of, double* losses, double scale, cudaStream_t stream) {
  if (of.rows == 0) return;
  std::size_t row = 0;
  if constexpr (Gradient) {
    int gpu = 0, most = 0, shared = 0;
    cuda_check(cudaGetDevice(&gpu), "cudaGetDevice");
    cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu), "asking for a size");
    cuda_check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, gpu), "asking for a size");
    constexpr int own = 1024, reserved = 1024;  // of a block: what the kernel declares, and what CUDA takes
    const auto two = static_cast<std::size_t>(std::min(shared / 2 - reserved, most) - own),
               one = static_cast<std::size_t>(most - own);
    row = static_cast<std::size_t>(of.stride) * sizeof(T);
    row = (row <= two ? row : std::min(row, one)) / 16 * 16;
    cuda_check(cudaFuncSetAttribute(cross_entropy_rows<Gradient, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(one)),  // ranks that share the GPU may have other rows
               "asking for shared memory");
  }
  cross_entropy_rows<Gradient><<<static_cast<unsigned>(of.rows), logits_threads, row, stream>>>(
      of, losses, static_cast<compute_t<T>>(scale), static_cast<int>(row / 16));
}

#endif

}  // namespace zeropp::kernels::detail
