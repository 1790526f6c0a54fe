// SPDX-License-Identifier: Apache-2.0
// kernels/partial_attention.hpp on a GPU: by our own warpgroups or tiles, or in the plain way.
#pragma once

#include <cmath>
#include <cstdint>

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/attention.hpp>
#include <zeropp/kernels/partial_attention.hpp>

namespace zeropp::kernels {

#ifdef __CUDACC__
namespace detail {

/// A warp a row of `part` and of `out`: see merge_partial_attention.
template <class C>
__global__ void __launch_bounds__(256)
    merge_attention_kernel(AttentionShape s, const C* part, const C* part_lse, C* out, C* lse, std::int64_t sequence,
                           std::int64_t first) {
  const std::int64_t row = std::int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= s.batch * s.heads * s.sequence) return;
  const std::int64_t b = row / (s.heads * s.sequence), h = row / s.sequence % s.heads, t = row % s.sequence;
  C& kept = lse[(b * s.heads + h) * sequence + first + t];
  const C a = kept, other = part_lse[row], top = a > other ? a : other;
  const C of_out = std::exp(a - top), of_part = std::exp(other - top), sum = of_out + of_part;
  C* const to = out + ((b * sequence + first + t) * s.heads + h) * s.head_size;
  const C* const from = part + ((b * s.sequence + t) * s.heads + h) * s.head_size;
  const C x = of_out / sum, y = of_part / sum;
  for (std::int64_t d = threadIdx.x % 32; d < s.head_size; d += 32) to[d] = x * to[d] + y * from[d];
  __syncwarp();  // all have read it
  if (threadIdx.x % 32 == 0) kept = top + std::log(sum);
}

}  // namespace detail
#endif

template <CudaDevice D, class T>
void partial_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<compute_t<T>> out, compute_t<T>* lse) {
  detail::gpu_attention_forward(device, true, detail::checked(s), q, k, v, out, lse);
}

template <CudaDevice D, class T>
void partial_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                                HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                                HeadsView<const T> dout, HeadsView<compute_t<T>> dq, HeadsView<compute_t<T>> dk,
                                HeadsView<compute_t<T>> dv) {
  detail::gpu_attention_backward(device, true, detail::checked(s), q, k, v, out, lse, dout, dq, dk, dv);
}

#ifdef __CUDACC__
template <CudaDevice D, class C>
void merge_partial_attention(D& device, const AttentionShape& s, const C* part, const C* part_lse, C* out, C* lse,
                             std::int64_t sequence, std::int64_t first) {
  const auto rows = s.batch * s.heads * s.sequence;
  if (rows == 0) return;
  const auto count = static_cast<double>(rows * s.head_size);
  device.run({.name = "merge attention", .flops = 3 * count, .bytes = 3 * count * sizeof(C)}, [&](cudaStream_t stream) {
    detail::merge_attention_kernel<<<static_cast<unsigned>(ceil_div(rows, 8)), 256, 0, stream>>>(s, part, part_lse, out,
                                                                                                 lse, sequence, first);
  });
}
#endif

}  // namespace zeropp::kernels
