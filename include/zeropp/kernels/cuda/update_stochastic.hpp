// SPDX-License-Identifier: Apache-2.0
// kernels/update_stochastic.hpp on a GPU: the step of cuda/update.hpp, and the CPU's random bits, element by element. One
// block of the generator serves four elements side by side, or two blocks where their numbers do not begin at a
// multiple of four.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/kernels/cuda/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

/// Runs of one launch, in order, not overlapping.
struct StochasticRuns {
  static constexpr int most = 64;
  struct Run {
    std::int64_t begin, end, first;
    Random random;
    ElementStep<float> step;
  };
  int count = 0;
  Run run[most];
};
static_assert(sizeof(StochasticRuns) + 256 <= 4096, "what a launch takes");

/// Half `index` of 0 to 7 of a block (Random::half), by selects: registers have no addresses.
__device__ __forceinline__ std::uint16_t half_of(const std::array<std::uint32_t, 4>& block, unsigned index) {
  const auto low = index & 2 ? block[1] : block[0], high = index & 2 ? block[3] : block[2];
  const auto word = index & 4 ? high : low;
  return static_cast<std::uint16_t>(index & 1 ? word >> 16 : word);
}

/// A thread takes `update_unroll` groups of N elements that begin at multiples of N. A group within one run moves by
/// vectors, others element by element; elements of no run stay as they are.
template <int N, class U, class G, int S>
__global__ void __launch_bounds__(update_threads)
    update_stochastic_kernel(bf16* w, const G* g, const SlotPointers<float, S> slots, std::int64_t n,
                             std::int64_t first, const __grid_constant__ StochasticRuns runs,
                             const __grid_constant__ U of_step, const GradientScale<float> given,
                             const GradientNorm* clip) {
  GradientScale<float> gradient = given;
  if (!gradient.take(clip)) return;
  constexpr std::int64_t step = update_threads * N;
  const std::int64_t begin = first + blockIdx.x * step * update_unroll + threadIdx.x * N;
  const auto run_of = [&](std::int64_t i) {
    return run_after(i, runs.count, [&](int run) { return runs.run[run].end; });
  };
  bool whole[update_unroll];
  int at_run[update_unroll];
  Lanes<bf16, N> w_in[update_unroll];
  Lanes<G, N> g_in[update_unroll];
  Lanes<float, N> s_in[update_unroll][S];
#pragma unroll
  for (int u = 0; u < update_unroll; ++u) {
    const std::int64_t at = begin + u * step;
    at_run[u] = run_of(at);
    whole[u] = at_run[u] < runs.count && runs.run[at_run[u]].begin <= at && at + N <= runs.run[at_run[u]].end;
    if (!whole[u]) continue;
    g_in[u] = Lanes<G, N>::load(g + at);
#pragma unroll
    for (int s = 0; s < S; ++s) s_in[u][s] = Lanes<float, N>::load(slots.of[s] + at);
    w_in[u] = Lanes<bf16, N>::load(w + at);
  }
#pragma unroll
  for (int u = 0; u < update_unroll; ++u) {
    const std::int64_t at = begin + u * step;
    if (whole[u]) {
      const auto& run = runs.run[at_run[u]];
      const auto number = static_cast<std::uint64_t>(run.first + (at - run.begin));
      const auto place = static_cast<unsigned>(number % 8);
      const auto here = run.random.block(number / 8);
      auto next = here;
      if (place + N > 8) next = run.random.block(number / 8 + 1);
      float s_out[S][N];
      Lanes<bf16, N> w_out;
#pragma unroll
      for (unsigned k = 0; k < N; ++k) {
        float master = w_in[u][k], state[S];
#pragma unroll
        for (int s = 0; s < S; ++s) state[s] = s_in[u][s][k];
        update_element(of_step, master, static_cast<float>(g_in[u][k]), state, gradient.scale, run.step);
#pragma unroll
        for (int s = 0; s < S; ++s) s_out[s][k] = state[s];
        const auto random = place + k < 8 ? half_of(here, place + k) : half_of(next, place + k - 8);
        reinterpret_cast<bf16*>(w_out.word)[k] = rounded_stochastically(master, random);
      }
      w_out.store(w + at);
#pragma unroll
      for (int s = 0; s < S; ++s) Lanes<float, N>::of(s_out[s]).store(slots.of[s] + at);
      continue;
    }
#pragma unroll 1
    for (std::int64_t i = at; i < at + N && i < n; ++i) {
      const int r = run_of(i);
      if (r == runs.count || i < runs.run[r].begin) continue;
      const auto& run = runs.run[r];
      const auto number = static_cast<std::uint64_t>(run.first + (i - run.begin));
      float master = w[i], state[S];
#pragma unroll
      for (int s = 0; s < S; ++s) state[s] = slots.of[s][i];
      update_element(of_step, master, static_cast<float>(g[i]), state, gradient.scale, run.step);
#pragma unroll
      for (int s = 0; s < S; ++s) slots.of[s][i] = state[s];
      w[i] = rounded_stochastically(master, half_of(run.random.block(number / 8), static_cast<unsigned>(number % 8)));
    }
  }
}

}  // namespace detail

/// As on the CPU: one launch for up to 64 runs, which are in order.
template <UpdateRule R, CudaDevice D, class G>
void update_stochastic(D& device, const R& rule, const UpdateSpan<bf16, G, float, slot_count<R>>& s,
                       std::span<const UpdateRun> runs, const UpdateStep& step, std::uint64_t seed) {
  std::int64_t elements = 0;
  for (const auto& run : runs) elements += run.range.size();
  if (elements == 0) return;
  const auto n = static_cast<std::int64_t>(s.weight.size());
  const Cost cost{.name = R::name,
                  .flops = update_flops<R>() * static_cast<double>(elements),
                  .bytes = static_cast<double>(elements) *
                           (2 * sizeof(bf16) + sizeof(G) + 2 * slot_count<R> * sizeof(float))};
  device.run(cost, [&](cudaStream_t stream) {
    const auto of_step = detail::of_step<float>(rule, step);
    using Runs = detail::StochasticRuns;
    for (std::size_t i = 0; i < runs.size(); i += Runs::most) {
      Runs some;
      some.count = static_cast<int>(std::min<std::size_t>(Runs::most, runs.size() - i));
      for (int k = 0; k < some.count; ++k) {
        const auto& run = runs[i + static_cast<std::size_t>(k)];
        some.run[k] = {run.range.begin,
                       run.range.end,
                       run.first,
                       detail::rounding_bits(seed, run.stream, step.number),
                       detail::element_step<float>(step, run)};
      }
      constexpr int lanes = 4;
      const auto launch = [&]<int N>(std::integral_constant<int, N>) {
        const auto first = some.run[0].begin / N * N, end = some.run[some.count - 1].end;
        if (end <= first) return;
        detail::update_stochastic_kernel<N>
            <<<detail::update_blocks_of<N>(first, end), detail::update_threads, 0, stream>>>(
                s.weight.data(), s.gradient.data(), detail::slot_pointers(s.slots), n, first, some, of_step,
                detail::GradientScale<float>(step), step.clip);
      };
      if (detail::aligned_for_update<lanes>(s))
        launch(std::integral_constant<int, lanes>{});
      else
        launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace zeropp::kernels
#endif
