// SPDX-License-Identifier: Apache-2.0
// Attention to some of the keys, joined with attention to others by their log-sum-exps: softmax over all of them
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Liu et al., "Ring attention", 2023).
#pragma once

#include <cmath>
#include <cstdint>

#include <zeropp/device/device.hpp>
#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/math.hpp>

namespace zeropp::kernels {

/// causal_attention_forward over a part of the keys (`keys` and `offset` of the shape): the output, and the log-sum-exp
/// of the scores, in the type that computes. Throws ConfigError where keys or offset are negative.
template <Device D, class T>
void partial_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<compute_t<T>> out, compute_t<T>* lse) {
  detail::attention_forward<T, compute_t<T>>(device, detail::checked(s), q, k, v, out, lse);
}

/// causal_attention_backward over a part of the keys: `out` and `lse` are those over all of them; what it writes to dq,
/// dk and dv are parts of sums, in the type that computes: 0 for keys that no query sees.
template <Device D, class T>
void partial_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                                HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                                HeadsView<const T> dout, HeadsView<compute_t<T>> dq, HeadsView<compute_t<T>> dk,
                                HeadsView<compute_t<T>> dv) {
  detail::attention_backward<T, compute_t<T>>(device, detail::checked(s), q, k, v, out, lse, dout, dq, dk, dv);
}

/// out [B, sequence, H, D] and lse [B, H, sequence], of queries [first, first + s.sequence), take in what `s` says of
/// other keys: part [B, s.sequence, H, D] and part_lse [B, H, s.sequence]. Every query has seen keys on both sides.
template <Device D, class C>
void merge_partial_attention(D& device, const AttentionShape& s, const C* part, const C* part_lse, C* out, C* lse,
                             std::int64_t sequence, std::int64_t first) {
  const auto rows = s.batch * s.heads * s.sequence;
  const auto count = static_cast<double>(rows * s.head_size);
  device.run({.name = "merge attention", .flops = 3 * count, .bytes = 3 * count * sizeof(C)}, [&](auto& workers) {
    workers.for_each(rows, 64, [&](std::int64_t begin, std::int64_t end) {
      for (auto row = begin; row < end; ++row) {
        const auto b = row / (s.heads * s.sequence), h = row / s.sequence % s.heads, t = row % s.sequence;
        C& kept = lse[(b * s.heads + h) * sequence + first + t];
        const C a = kept, other = part_lse[row], top = a > other ? a : other;
        const C of_out = kernels::exp(a - top), of_part = kernels::exp(other - top), sum = of_out + of_part;
        C* to = out + ((b * sequence + first + t) * s.heads + h) * s.head_size;
        const C* from = part + ((b * s.sequence + t) * s.heads + h) * s.head_size;
        const C x = of_out / sum, y = of_part / sum;
        for (std::int64_t d = 0; d < s.head_size; ++d) to[d] = x * to[d] + y * from[d];
        kept = top + std::log(sum);
      }
    });
  });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/partial_attention.hpp>
#endif
