// SPDX-License-Identifier: Apache-2.0
// One step of an optimizer's rule over flat buffers in one pass: reads weight, gradient and slots, writes weight and
// slots (AdamW: 28 bytes a parameter in float). Every element is computed by the same vector code wherever it lies, so
// a buffer cut into shards gives the bits of the whole.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/device/device.hpp>
#include <zeropp/kernels/masters.hpp>
#include <zeropp/kernels/update_rule.hpp>

namespace zeropp::kernels {

namespace detail {

/// `blocks` whole blocks. Not inlined: one piece of machine code serves the body and the tail.
template <class U, class W, class G, class C, std::size_t S>
[[gnu::noinline]] void update_blocks(W* w, kept_t<W>* kept, const G* g, std::array<C*, S> slots, std::int64_t blocks,
                                     const U update, C scale, const ElementStep<C> step) {
  constexpr int n = lanes<C>;
  static_assert(update_block % n == 0);
  for (std::int64_t block = 0; block < blocks; ++block) {
    C master[update_block];
    join_masters(w, kept, master);
    for (int i = 0; i < update_block; i += n) {
      auto weight = load<n>(master + i);
      const decltype(weight) gradient = load<n>(g + i) * scale;
      decltype(weight) state[S];
      for (std::size_t s = 0; s < S; ++s) state[s] = load<n>(slots[s] + i);
#ifndef __CUDA_ARCH__  // nvcc's pass for the GPU would compile the rule for the CPU's vectors too, and cannot
      run_rule(update, weight, gradient, state, step);
#endif
      store<n, C>(master + i, weight);
      for (std::size_t s = 0; s < S; ++s) store<n, C>(slots[s] + i, state[s]);
    }
    split_masters(master, w, kept);
    w += update_block, g += update_block;
    for (auto& slot : slots) slot += update_block;
    if constexpr (has_master<W>) kept += update_block;
  }
}

/// The elements that do not fill a block, by way of one.
template <class U, class W, class G, class C, std::size_t S>
void update_tail(W* w, kept_t<W>* kept, const G* g, std::array<C*, S> slots, std::int64_t n, const U& update, C scale,
                 const ElementStep<C>& step) {
  W w_block[update_block] = {};
  kept_t<W> kept_block[update_block] = {};
  G g_block[update_block] = {};
  C slot_block[S][update_block] = {};
  std::array<C*, S> blocks;
  std::copy_n(w, n, w_block);
  if (kept) std::copy_n(kept, n, kept_block);
  std::copy_n(g, n, g_block);
  for (std::size_t s = 0; s < S; ++s) blocks[s] = std::copy_n(slots[s], n, slot_block[s]) - n;
  update_blocks(w_block, kept_block, g_block, blocks, 1, update, scale, step);
  std::copy_n(w_block, n, w);
  if (kept) std::copy_n(kept_block, n, kept);
  for (std::size_t s = 0; s < S; ++s) std::copy_n(slot_block[s], n, slots[s]);
}

}  // namespace detail

/// One step over the elements of `runs`, which do not overlap.
template <UpdateRule R, Device D, class W, class G, class M>
void update(D& device, const R& rule, const UpdateSpan<W, G, M, slot_count<R>>& s, std::span<const UpdateRun> runs,
            const UpdateStep& step) {
  static_assert(!has_master<W> || std::is_same_v<M, float>, "weights of 16 bits have float masters and slots");
  for (const auto& run : runs) {
    const auto n = run.range.size();
    device.run({.name = R::name,
                .flops = update_flops<R>() * static_cast<double>(n),
                .bytes = static_cast<double>(n) * detail::update_bytes<W, G, M, slot_count<R>>},
               [&](auto& workers) {
                 detail::GradientScale<M> gradient(step);
                 if (!gradient.take(step.clip)) return;
                 const auto of_step = detail::of_step<M>(rule, step);
                 const auto of_run = detail::element_step<M>(step, run);
                 workers.for_each(n, 256 * detail::update_block, [&](std::int64_t begin, std::int64_t end) {
                   const auto blocks = (end - begin) / detail::update_block, whole = blocks * detail::update_block;
                   const auto at = [&](std::int64_t i, auto&& call) {
                     i += run.range.begin;
                     std::array<M*, slot_count<R>> slots;
                     for (std::size_t k = 0; k < slots.size(); ++k) slots[k] = s.slots[k].data() + i;
                     call(s.weight.data() + i, s.masters.empty() ? nullptr : s.masters.data() + i,
                          s.gradient.data() + i, slots);
                   };
                   at(begin, [&](auto* w, auto* kept, auto* g, auto slots) {
                     detail::update_blocks(w, kept, g, slots, blocks, of_step, gradient.scale, of_run);
                   });
                   if (const auto rest = end - begin - whole)
                     at(begin + whole, [&](auto* w, auto* kept, auto* g, auto slots) {
                       detail::update_tail(w, kept, g, slots, rest, of_step, gradient.scale, of_run);
                     });
                 });
               });
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/update.hpp>
#endif
