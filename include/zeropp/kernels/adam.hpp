// SPDX-License-Identifier: Apache-2.0
// One AdamW step over flat buffers in one pass: reads weight, gradient and both moments, writes weight and moments
// (28 bytes a parameter in float). Every element is computed by the same vector code wherever it lies, so a buffer cut
// into shards gives the bits of the whole.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/gradient_norm.hpp>
#include <zeropp/kernels/vector.hpp>

namespace zeropp::kernels {

/// Buffers of one size. `masters` is what is kept of fp32 masters beside bf16 and f16 weights, otherwise it is empty.
template <class Weight, class Gradient, class Moment>
struct AdamSpan {
  std::span<Weight> weight;
  std::span<kept_t<Weight>> masters;
  std::span<const Gradient> gradient;
  std::span<Moment> first, second;
};

struct AdamStep {
  float learning_rate = 0, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 0;
  float gradient_scale = 1;  ///< clipping, and the inverse of a loss scale
  /// Where the device keeps a factor to clip by, beside that one: if it is not finite, nothing changes.
  const GradientNorm* clip = nullptr;
  double bias_correction1 = 1, bias_correction2 = 1;  ///< 1 - beta^step
};

/// Consecutive elements with one weight decay.
struct AdamRun {
  Range range;
  float weight_decay = 0;
};

namespace detail {

inline constexpr std::int64_t adam_block = 64;

/// That move for an element. A master that is kept whole is read in place of its weight.
template <class W, class G, class M>
inline constexpr double adam_bytes = (std::is_same_v<W, f16> ? 1 : 2) * sizeof(W) +
                                     (has_master<W> ? 2 * sizeof(kept_t<W>) : 0) + sizeof(G) + 4 * sizeof(M);

/// The coefficients of an update, once a call, in the compute type. As torch.optim.AdamW:
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
  /// Takes in what a clip says, if there is one. False: it says that no step is to be done.
  constexpr bool take(const GradientNorm* clip) {
    if (clip) scale *= static_cast<C>(clip->factor);
    return !clip || clip->finite;
  }
  C decay, one_minus_beta1, beta2, one_minus_beta2, step, root, epsilon, scale;
};

/// x[i] = √x[i] for a block. By instruction: std::sqrt may set errno, which keeps compilers from vectorising a loop of
/// it.
template <class C>
inline void square_roots(C* x) {
#if defined(__SSE2__)
  if constexpr (std::is_same_v<C, float>) {
#if defined(__AVX__)
    constexpr int n = 8;
#else
    constexpr int n = 4;
#endif
    for (int i = 0; i < adam_block; i += n) {
      Vector<float, n> v;
      std::memcpy(&v, x + i, sizeof v);
#if defined(__AVX__)
      asm("vsqrtps %0, %0" : "+x"(v));
#else
      asm("sqrtps %0, %0" : "+x"(v));
#endif
      std::memcpy(x + i, &v, sizeof v);
    }
  } else
#endif
  {
    for (int i = 0; i < adam_block; ++i) x[i] = std::sqrt(x[i]);
  }
}

// The masters of a block and back. SplitMaster on plain integers: loops over its struct do not vectorise.
inline void join_masters(const bf16* w, const std::int16_t* low, float* master) {
  std::uint16_t high[adam_block];
  std::uint32_t bits[adam_block];
  std::memcpy(high, w, sizeof high);
  for (int i = 0; i < adam_block; ++i)
    bits[i] =
        (static_cast<std::uint32_t>(high[i]) << 16) + static_cast<std::uint32_t>(static_cast<std::int32_t>(low[i]));
  std::memcpy(master, bits, sizeof bits);
}
inline void split_masters(const float* master, bf16* w, std::int16_t* low) {
  std::uint16_t high[adam_block];
  std::uint32_t bits[adam_block];
  std::memcpy(bits, master, sizeof bits);
  for (int i = 0; i < adam_block; ++i) high[i] = static_cast<std::uint16_t>((bits[i] + 0x8000u) >> 16);
  for (int i = 0; i < adam_block; ++i) low[i] = static_cast<std::int16_t>(static_cast<std::uint16_t>(bits[i]));
  std::memcpy(static_cast<void*>(w), high, sizeof high);
}

inline void join_masters(const f16*, const float* whole, float* master) { std::copy_n(whole, adam_block, master); }
inline void split_masters(const float* master, f16* w, float* whole) {
  std::copy_n(master, adam_block, whole);
  for (int i = 0; i < adam_block; i += lanes<float>) store<lanes<float>, float>(w + i, load<lanes<float>>(master + i));
}
template <class T>
void join_masters(const T* w, const NoMaster::Kept*, T* master) {
  std::copy_n(w, adam_block, master);
}
template <class T>
void split_masters(const T* master, T* w, NoMaster::Kept*) {
  std::copy_n(master, adam_block, w);
}

/// `blocks` whole blocks. Not inlined: one piece of machine code serves the body and the tail.
template <class W, class G, class M>
[[gnu::noinline]] void adam_blocks(W* __restrict w, kept_t<W>* __restrict kept, const G* __restrict g, M* __restrict m,
                                   M* __restrict v, std::int64_t blocks, const AdamFactors<M> f) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    M master[adam_block], root[adam_block];
    for (int i = 0; i < adam_block; ++i) {
      const M grad = static_cast<M>(g[i]) * f.scale;
      m[i] = m[i] + (grad - m[i]) * f.one_minus_beta1;
      root[i] = v[i] = v[i] * f.beta2 + grad * grad * f.one_minus_beta2;
    }
    square_roots(root);
    join_masters(w, kept, master);
    for (int i = 0; i < adam_block; ++i)
      master[i] = master[i] * f.decay - f.step * m[i] / (root[i] * f.root + f.epsilon);
    split_masters(master, w, kept);
    w += adam_block, g += adam_block, m += adam_block, v += adam_block;
    if constexpr (has_master<W>) kept += adam_block;
  }
}

/// The elements that do not fill a block, by way of one.
template <class W, class G, class M>
void adam_tail(W* w, kept_t<W>* kept, const G* g, M* m, M* v, std::int64_t n, const AdamFactors<M>& f) {
  W w_block[adam_block] = {};
  kept_t<W> kept_block[adam_block] = {};
  G g_block[adam_block] = {};
  M m_block[adam_block] = {}, v_block[adam_block] = {};
  std::copy_n(w, n, w_block);
  if (kept) std::copy_n(kept, n, kept_block);
  std::copy_n(g, n, g_block);
  std::copy_n(m, n, m_block);
  std::copy_n(v, n, v_block);
  adam_blocks(w_block, kept_block, g_block, m_block, v_block, 1, f);
  std::copy_n(w_block, n, w);
  if (kept) std::copy_n(kept_block, n, kept);
  std::copy_n(m_block, n, m);
  std::copy_n(v_block, n, v);
}

}  // namespace detail

template <Device D, class W, class G, class M>
void adam(D& device, const AdamSpan<W, G, M>& s, const AdamStep& step) {
  static_assert(!has_master<W> || std::is_same_v<M, float>, "weights of 16 bits have float masters and moments");
  const auto n = static_cast<std::int64_t>(s.weight.size());
  device.run({.name = "adam",
              .flops = 16.0 * static_cast<double>(n),
              .bytes = static_cast<double>(n) * detail::adam_bytes<W, G, M>},
             [&](auto& workers) {
               detail::AdamFactors<M> f(step);
               if (!f.take(step.clip)) return;
               workers.for_each(n, 256 * detail::adam_block, [&](std::int64_t begin, std::int64_t end) {
                 auto* kept = s.masters.empty() ? nullptr : s.masters.data() + begin;
                 auto* w = s.weight.data() + begin;
                 const auto* g = s.gradient.data() + begin;
                 auto *m = s.first.data() + begin, *v = s.second.data() + begin;
                 const auto blocks = (end - begin) / detail::adam_block, whole = blocks * detail::adam_block;
                 detail::adam_blocks(w, kept, g, m, v, blocks, f);
                 if (const auto rest = end - begin - whole)
                   detail::adam_tail(w + whole, kept ? kept + whole : nullptr, g + whole, m + whole, v + whole, rest,
                                     f);
               });
             });
}

/// The same over some runs of the buffers; step.weight_decay is not read.
template <Device D, class W, class G, class M>
void adam(D& device, const AdamSpan<W, G, M>& s, std::span<const AdamRun> runs, AdamStep step) {
  for (const auto& run : runs) {
    const auto part = [&](auto span) {
      return span.empty()
                 ? span
                 : span.subspan(static_cast<std::size_t>(run.range.begin), static_cast<std::size_t>(run.range.size()));
    };
    step.weight_decay = run.weight_decay;
    adam(device, AdamSpan<W, G, M>{part(s.weight), part(s.masters), part(s.gradient), part(s.first), part(s.second)},
         step);
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/adam.hpp>
#endif
