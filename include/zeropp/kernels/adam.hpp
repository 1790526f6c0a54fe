// SPDX-License-Identifier: Apache-2.0
// One AdamW step over flat buffers in one pass: reads weight, gradient and both moments, writes weight and moments
// (28 bytes a parameter in float). Every element is computed by the same vector code wherever it lies, so a buffer cut
// into shards gives the bits of the whole.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// Buffers of one size. `remainder` holds the lower halves of fp32 masters for bf16 weights, otherwise it is empty.
template <class Weight, class Gradient, class Moment>
struct AdamSpan {
  std::span<Weight> weight;
  std::span<std::int16_t> remainder;
  std::span<const Gradient> gradient;
  std::span<Moment> first, second;
};

struct AdamStep {
  float learning_rate = 0, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0;
  float gradient_scale = 1;                           ///< clipping
  double bias_correction1 = 1, bias_correction2 = 1;  ///< 1 - beta^step
};

namespace detail {

inline constexpr std::int64_t adam_block = 64;

/// What the update needs, once a call, in the compute type. As torch.optim.AdamW:
/// p *= 1 - lr·wd; m += (g - m)(1 - b1); v = v·b2 + g²(1 - b2); p -= lr/c1 · m / (√v/√c2 + ε).
template <class C>
struct AdamFactors {
  explicit AdamFactors(const AdamStep& s)
      : decay(static_cast<C>(1 - static_cast<double>(s.learning_rate) * static_cast<double>(s.weight_decay))),
        one_minus_beta1(static_cast<C>(1 - static_cast<double>(s.beta1))),
        beta2(static_cast<C>(s.beta2)),
        one_minus_beta2(static_cast<C>(1 - static_cast<double>(s.beta2))),
        step(static_cast<C>(static_cast<double>(s.learning_rate) / s.bias_correction1)),
        root(static_cast<C>(1 / std::sqrt(s.bias_correction2))),
        epsilon(static_cast<C>(s.epsilon)),
        scale(static_cast<C>(s.gradient_scale)) {}
  C decay, one_minus_beta1, beta2, one_minus_beta2, step, root, epsilon, scale;
};

/// `blocks` whole blocks. Not inlined: one piece of machine code serves the body and the tail.
template <class W, class G, class M>
[[gnu::noinline]] void adam_blocks(W* __restrict w, std::int16_t* __restrict low, const G* __restrict g,
                                   M* __restrict m, M* __restrict v, std::int64_t blocks, const AdamFactors<M> f) {
  for (std::int64_t i = 0; i < blocks * adam_block; ++i) {
    M p;
    if constexpr (std::is_same_v<W, bf16>) {
      SplitMaster split;
      split.weight = w[i];
      split.remainder = low[i];
      p = split.master();
    } else {
      p = w[i];
    }
    const M grad = static_cast<M>(g[i]) * f.scale;
    const M first = m[i] + (grad - m[i]) * f.one_minus_beta1;
    const M second = v[i] * f.beta2 + grad * grad * f.one_minus_beta2;
    p = p * f.decay - f.step * first / (std::sqrt(second) * f.root + f.epsilon);
    m[i] = first;
    v[i] = second;
    if constexpr (std::is_same_v<W, bf16>) {
      const auto split = SplitMaster::from(p);
      w[i] = split.weight;
      low[i] = split.remainder;
    } else {
      w[i] = p;
    }
  }
}

/// The elements that do not fill a block, by way of one.
template <class W, class G, class M>
void adam_tail(W* w, std::int16_t* low, const G* g, M* m, M* v, std::int64_t n, const AdamFactors<M>& f) {
  W w_block[adam_block] = {};
  std::int16_t low_block[adam_block] = {};
  G g_block[adam_block] = {};
  M m_block[adam_block] = {}, v_block[adam_block] = {};
  std::copy_n(w, n, w_block);
  if (low) std::copy_n(low, n, low_block);
  std::copy_n(g, n, g_block);
  std::copy_n(m, n, m_block);
  std::copy_n(v, n, v_block);
  adam_blocks(w_block, low_block, g_block, m_block, v_block, 1, f);
  std::copy_n(w_block, n, w);
  if (low) std::copy_n(low_block, n, low);
  std::copy_n(m_block, n, m);
  std::copy_n(v_block, n, v);
}

}  // namespace detail

template <Device D, class W, class G, class M>
void adam(D& device, const AdamSpan<W, G, M>& s, const AdamStep& step) {
  static_assert(!std::is_same_v<W, bf16> || std::is_same_v<M, float>, "bf16 weights have float masters and moments");
  const auto n = static_cast<std::int64_t>(s.weight.size());
  const auto bytes = 2 * sizeof(W) + 2 * (s.remainder.empty() ? 0 : sizeof(std::int16_t)) + sizeof(G) + 4 * sizeof(M);
  device.run({.name = "adam",
              .flops = 16.0 * static_cast<double>(n),
              .bytes = static_cast<double>(n) * static_cast<double>(bytes)},
             [&](auto& workers) {
               const detail::AdamFactors<M> f(step);
               workers.for_each(n, 256 * detail::adam_block, [&](std::int64_t begin, std::int64_t end) {
                 auto* low = s.remainder.empty() ? nullptr : s.remainder.data() + begin;
                 auto* w = s.weight.data() + begin;
                 const auto* g = s.gradient.data() + begin;
                 auto *m = s.first.data() + begin, *v = s.second.data() + begin;
                 const auto blocks = (end - begin) / detail::adam_block, whole = blocks * detail::adam_block;
                 detail::adam_blocks(w, low, g, m, v, blocks, f);
                 if (const auto rest = end - begin - whole)
                   detail::adam_tail(w + whole, low ? low + whole : nullptr, g + whole, m + whole, v + whole, rest, f);
               });
             });
}

}  // namespace zeropp::kernels
