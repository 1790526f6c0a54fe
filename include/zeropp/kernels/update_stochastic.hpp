// SPDX-License-Identifier: Apache-2.0
// A rule's step over bf16 weights without masters: the step of kernels/update.hpp in float, then stochastic rounding
// (Gupta et al., "Deep learning with limited numerical precision", arXiv 1502.02551): up with the probability of the
// fraction that bf16 drops, so that updates far below the step of bf16 are kept on average. 22 bytes a parameter move
// in AdamW.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include <zeropp/base/random.hpp>
#include <zeropp/kernels/random_halves.hpp>
#include <zeropp/kernels/update.hpp>

namespace zeropp::kernels {

namespace detail {

/// The bits that round the elements of `stream` in step `step`: element i takes half(i).
inline Random rounding_bits(std::uint64_t seed, std::uint64_t stream, std::int64_t step) {
  return {seed, RandomPurpose::stochastic_rounding, stream, static_cast<std::uint64_t>(step)};
}

/// w[i] = masters[i] rounded by the bits of element first + i, for n elements of a block.
inline void round_block(const float* masters, bf16* w, std::int64_t n, const Random& random, std::uint64_t first) {
  constexpr auto blocks = update_block / 8;  // of the generator; more where the first is not whole
  std::uint16_t halves[2 * update_block], high[update_block];
  std::uint32_t bits[update_block];
  random_halves<blocks>(random, first / 8, halves);
  if (first % 8) random_halves<blocks>(random, first / 8 + blocks, halves + update_block);
  std::memcpy(bits, masters, sizeof bits);
  const std::uint16_t* random_of = halves + first % 8;
  for (int i = 0; i < update_block; ++i) {  // rounded_stochastically, on plain integers: loops over bf16 don't vectorise
    const auto b = bits[i];
    high[i] = static_cast<std::uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : (b + random_of[i]) >> 16);
  }
  std::memcpy(static_cast<void*>(w), high, static_cast<std::size_t>(n) * sizeof(bf16));
}

}  // namespace detail

/// One step over the elements of `runs`, which do not overlap.
template <UpdateRule R, Device D, class G>
void update_stochastic(D& device, const R& rule, const UpdateSpan<bf16, G, float, slot_count<R>>& s,
                       std::span<const UpdateRun> runs, const UpdateStep& step, std::uint64_t seed) {
  constexpr auto block = detail::update_block;
  for (const auto& run : runs) {
    const auto n = run.range.size();
    device.run({.name = R::name,
                .flops = update_flops<R>() * static_cast<double>(n),
                .bytes = static_cast<double>(n) *
                         (2 * sizeof(bf16) + sizeof(G) + 2 * slot_count<R> * sizeof(float))},
               [&](auto& workers) {
                 detail::GradientScale<float> gradient(step);
                 if (!gradient.take(step.clip)) return;
                 const auto of_step = detail::of_step<float>(rule, step);
                 const auto of_run = detail::element_step<float>(step, run);
                 const auto random = detail::rounding_bits(seed, run.stream, step.number);
                 // Block by block, by the machine code of float weights.
                 workers.for_each(n, 256 * block, [&](std::int64_t begin, std::int64_t end) {
                   for (auto i = begin; i < end; i += block) {
                     const auto count = std::min(block, end - i), at = run.range.begin + i;
                     std::uint16_t high[block] = {};
                     std::uint32_t bits[block];
                     float masters[block];
                     std::memcpy(high, static_cast<const void*>(s.weight.data() + at),
                                 static_cast<std::size_t>(count) * sizeof(bf16));
                     for (int k = 0; k < block; ++k) bits[k] = static_cast<std::uint32_t>(high[k]) << 16;
                     std::memcpy(masters, bits, sizeof masters);
                     std::array<float*, slot_count<R>> slots;
                     for (std::size_t k = 0; k < slots.size(); ++k) slots[k] = s.slots[k].data() + at;
                     const auto call = [&](auto&& f, std::int64_t size) {
                       f(masters, static_cast<NoMaster::Kept*>(nullptr), s.gradient.data() + at, slots, size, of_step,
                         gradient.scale, of_run);
                     };
                     if (count == block)
                       call([](auto... a) { detail::update_blocks(a...); }, 1);
                     else
                       call([](auto... a) { detail::update_tail(a...); }, count);
                     detail::round_block(masters, s.weight.data() + at, count, random,
                                         static_cast<std::uint64_t>(run.first + i));
                   }
                 });
               });
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/update_stochastic.hpp>
#endif
