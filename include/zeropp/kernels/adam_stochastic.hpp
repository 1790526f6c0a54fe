// SPDX-License-Identifier: Apache-2.0
// AdamW over bf16 weights without masters: the step of kernels/adam.hpp in float, then stochastic rounding (Gupta et
// al., "Deep learning with limited numerical precision", arXiv 1502.02551): up with the probability of the fraction
// that bf16 drops, so that updates far below the step of bf16 are kept on average. 22 bytes a parameter move.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include <zeropp/base/random.hpp>
#include <zeropp/kernels/adam.hpp>
#include <zeropp/kernels/random_halves.hpp>

namespace zeropp::kernels {

/// Consecutive elements with one weight decay, which are rounded by the random numbers `first`, `first` + 1, … of
/// `stream`.
struct AdamStochasticRun {
  Range range;
  float weight_decay = 0;
  std::uint64_t stream = 0;  ///< of the tensor that they belong to
  std::int64_t first = 0;    ///< the first one's index in that tensor, wherever it is cut
};

namespace detail {

/// The bits that round the elements of `stream` in step `step`: element i takes half(i).
inline Random rounding_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t step) {
  return {seed, RandomPurpose::stochastic_rounding, stream, step};
}

/// w[i] = masters[i] rounded by the bits of element first + i, for n elements of a block.
inline void round_block(const float* masters, bf16* w, std::int64_t n, const Random& random, std::uint64_t first) {
  constexpr auto blocks = adam_block / 8;  // of the generator; more where the first is not whole
  std::uint16_t halves[2 * adam_block], high[adam_block];
  std::uint32_t bits[adam_block];
  random_halves<blocks>(random, first / 8, halves);
  if (first % 8) random_halves<blocks>(random, first / 8 + blocks, halves + adam_block);
  std::memcpy(bits, masters, sizeof bits);
  const std::uint16_t* random_of = halves + first % 8;
  for (int i = 0; i < adam_block; ++i) {  // rounded_stochastically, on plain integers: loops over bf16 do not vectorise
    const auto b = bits[i];
    high[i] = static_cast<std::uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : (b + random_of[i]) >> 16);
  }
  std::memcpy(static_cast<void*>(w), high, static_cast<std::size_t>(n) * sizeof(bf16));
}

/// Elements [begin, end), block by block, by the machine code of float weights.
template <class G>
void adam_stochastic_part(const AdamSpan<bf16, G, float>& s, std::int64_t begin, std::int64_t end,
                          const AdamFactors<float>& f, const Random& random, std::uint64_t first) {
  for (auto at = begin; at < end; at += adam_block, first += adam_block) {
    const auto n = std::min(adam_block, end - at);
    auto* w = s.weight.data() + at;
    const auto* g = s.gradient.data() + at;
    auto *m = s.first.data() + at, *v = s.second.data() + at;
    std::uint16_t high[adam_block] = {};
    std::uint32_t bits[adam_block];
    float masters[adam_block];
    std::memcpy(high, static_cast<const void*>(w), static_cast<std::size_t>(n) * sizeof(bf16));
    for (int i = 0; i < adam_block; ++i) bits[i] = static_cast<std::uint32_t>(high[i]) << 16;
    std::memcpy(masters, bits, sizeof masters);
    if (n == adam_block)
      adam_blocks(masters, nullptr, g, m, v, 1, f);
    else
      adam_tail(masters, nullptr, g, m, v, n, f);
    round_block(masters, w, n, random, first);
  }
}

}  // namespace detail

/// One step over the elements of `runs`, which do not overlap. Remainders are not read, nor is step.weight_decay.
template <Device D, class G>
void adam_stochastic(D& device, const AdamSpan<bf16, G, float>& s, std::span<const AdamStochasticRun> runs,
                     AdamStep step, std::uint64_t seed, std::uint64_t number) {
  for (const auto& run : runs) {
    const auto n = run.range.size();
    step.weight_decay = run.weight_decay;
    device.run({.name = "adam",
                .flops = 16.0 * static_cast<double>(n),
                .bytes = static_cast<double>(n) * (2 * sizeof(bf16) + sizeof(G) + 4 * sizeof(float))},
               [&](auto& workers) {
                 detail::AdamFactors<float> f(step);
                 if (!f.take(step.clip)) return;
                 const auto random = detail::rounding_bits(seed, run.stream, number);
                 workers.for_each(n, 256 * detail::adam_block, [&](std::int64_t begin, std::int64_t end) {
                   detail::adam_stochastic_part(s, run.range.begin + begin, run.range.begin + end, f, random,
                                                static_cast<std::uint64_t>(run.first + begin));
                 });
               });
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/adam_stochastic.hpp>
#endif
