// SPDX-License-Identifier: Apache-2.0
// Helpers that kernels on a GPU share: elements moved 16 bytes at a time, conversions as instructions, sums over a
// warp, and partial sums of columns added in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/into.hpp>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace zeropp::kernels::detail {

/// Elements in one access of 16 bytes of the widest type.
template <class... T>
inline constexpr int vector_lanes = static_cast<int>(16 / std::max({sizeof(T)...}));

/// True if N elements at each place can be moved by accesses of up to 16 bytes.
template <int N, class... T>
bool aligned_for(const T*... places) {
  return ((reinterpret_cast<std::uintptr_t>(places) % std::min<std::size_t>(16, N * sizeof(T)) == 0) && ...);
}

#ifdef __CUDACC__

/// To nearest even, in one instruction for bf16 and f16.
template <class T>
__device__ __forceinline__ T rounded(compute_t<T> value) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 out;
    out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return out;
  } else {
    return static_cast<T>(value);
  }
}
/// Two at once.
template <class T>
__device__ __forceinline__ auto rounded_pair(float low, float high) {
  static_assert(is_half<T>, "pairs are of 16 bits");
  if constexpr (std::is_same_v<T, bf16>)
    return __floats2bfloat162_rn(low, high);
  else
    return __floats2half2_rn(low, high);
}

/// N elements as they lie in memory, moved by accesses of up to 16 bytes.
template <class T, int N>
struct Lanes {
  static constexpr int bytes = N * static_cast<int>(sizeof(T));
  using Word = std::conditional_t<
      bytes % 16 == 0, uint4,
      std::conditional_t<bytes % 8 == 0, uint2, std::conditional_t<bytes % 4 == 0, unsigned, unsigned short>>>;
  static constexpr int words = bytes / static_cast<int>(sizeof(Word));
  Word word[words];

  static __device__ __forceinline__ Lanes load(const T* from) {
    Lanes v;
#pragma unroll
    for (int w = 0; w < words; ++w) v.word[w] = reinterpret_cast<const Word*>(from)[w];
    return v;
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int w = 0; w < words; ++w) reinterpret_cast<Word*>(to)[w] = word[w];
  }
  /// i must be known when the loop around it is unrolled.
  __device__ __forceinline__ compute_t<T> operator[](int i) const {
    return static_cast<compute_t<T>>(reinterpret_cast<const T*>(word)[i]);
  }
  static __device__ __forceinline__ Lanes of(const compute_t<T> (&values)[N]) {
    Lanes v;
    if constexpr (is_half<T> && N % 2 == 0) {
      using Pair = decltype(rounded_pair<T>(0, 0));
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        reinterpret_cast<Pair*>(v.word)[i] = rounded_pair<T>(values[2 * i], values[2 * i + 1]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) reinterpret_cast<T*>(v.word)[i] = rounded<T>(values[i]);
    }
    return v;
  }
};

/// The sum over a warp, in every lane.
template <class C>
__device__ __forceinline__ C warp_sum(C value) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/// first [width] = or += Σ of `count` rows of `partials`, which lie `stride` apart; second the same of the next `width`
/// columns where gridDim.y is 2. Row i goes to warp i mod 32, the warps' sums are added as a tree.
template <class C, class G>
__global__ void __launch_bounds__(1024) add_partials_kernel(const C* partials, std::int64_t count, std::int64_t stride,
                                                            std::int64_t width, G* first, G* second, Into into) {
  __shared__ C part[32][33];
  const std::int64_t begin = blockIdx.x * std::int64_t{32}, column = begin + threadIdx.x;
  C sum = 0;
  if (column < width) {
    const C* from = partials + blockIdx.y * width + column;
#pragma unroll 8
    for (std::int64_t row = threadIdx.y; row < count; row += 32) sum += from[row * stride];
  }
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_sum(part[threadIdx.x][threadIdx.y]);
  const std::int64_t mine = begin + threadIdx.y;
  if (threadIdx.x || mine >= width) return;
  G* to = (blockIdx.y ? second : first) + mine;
  const auto before = into == Into::add ? static_cast<compute_t<G>>(*to) : compute_t<G>{};
  *to = rounded<G>(before + static_cast<compute_t<G>>(sum));
}

/// second may be null.
template <class C, class G>
void add_partials(cudaStream_t stream, const C* partials, std::int64_t count, std::int64_t stride, std::int64_t width,
                  G* first, G* second, Into into) {
  const dim3 grid(static_cast<unsigned>(ceil_div(width, 32)), second ? 2 : 1);
  add_partials_kernel<<<grid, dim3(32, 32), 0, stream>>>(partials, count, stride, width, first, second, into);
}

#endif

}  // namespace zeropp::kernels::detail
