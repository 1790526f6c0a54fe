// SPDX-License-Identifier: Apache-2.0
// kernels/adam_stochastic.hpp on a GPU: the step of cuda/adam.hpp, and the CPU's random bits, element by element. One
// block of the generator serves four elements side by side, or two blocks where their numbers do not begin at a
// multiple of four.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/kernels/adam_stochastic.hpp>
#include <zeropp/kernels/cuda/adam.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

/// Runs of one launch, in order, not overlapping.
struct AdamStochasticRuns {
  static constexpr int most = 64;
  struct Run {
    std::int64_t begin, end, first;
    Random random;
    float decay;
  };
  int count = 0;
  Run run[most];
};
static_assert(sizeof(AdamStochasticRuns) + sizeof(AdamFactors<float>) + 64 <= 4096, "what a launch takes");

/// Half `index` of 0 to 7 of a block (Random::half), by selects: registers have no addresses.
__device__ __forceinline__ std::uint16_t half_of(const std::array<std::uint32_t, 4>& block, unsigned index) {
  const auto low = index & 2 ? block[1] : block[0], high = index & 2 ? block[3] : block[2];
  const auto word = index & 4 ? high : low;
  return static_cast<std::uint16_t>(index & 1 ? word >> 16 : word);
}

/// A thread takes `adam_unroll` groups of N elements that begin at multiples of N. A group within one run moves by
/// vectors, others element by element; elements of no run stay as they are.
template <int N, class G>
__global__ void __launch_bounds__(adam_threads)
    adam_stochastic_kernel(bf16* w, const G* g, float* m, float* v, std::int64_t n, std::int64_t first,
                           const __grid_constant__ AdamStochasticRuns runs,
                           const __grid_constant__ AdamFactors<float> given, const GradientNorm* clip) {
  AdamFactors<float> f = given;
  if (!f.take(clip)) return;
  constexpr std::int64_t step = adam_threads * N;
  const std::int64_t begin = first + blockIdx.x * step * adam_unroll + threadIdx.x * N;
  const auto run_of = [&](std::int64_t i) {
    return run_after(i, runs.count, [&](int run) { return runs.run[run].end; });
  };
  bool whole[adam_unroll];
  int at_run[adam_unroll];
  Lanes<bf16, N> w_in[adam_unroll];
  Lanes<G, N> g_in[adam_unroll];
  Lanes<float, N> m_in[adam_unroll], v_in[adam_unroll];
#pragma unroll
  for (int u = 0; u < adam_unroll; ++u) {
    const std::int64_t at = begin + u * step;
    at_run[u] = run_of(at);
    whole[u] = at_run[u] < runs.count && runs.run[at_run[u]].begin <= at && at + N <= runs.run[at_run[u]].end;
    if (!whole[u]) continue;
    g_in[u] = Lanes<G, N>::load(g + at);
    m_in[u] = Lanes<float, N>::load(m + at);
    v_in[u] = Lanes<float, N>::load(v + at);
    w_in[u] = Lanes<bf16, N>::load(w + at);
  }
#pragma unroll
  for (int u = 0; u < adam_unroll; ++u) {
    const std::int64_t at = begin + u * step;
    if (whole[u]) {
      const auto& run = runs.run[at_run[u]];
      const auto number = static_cast<std::uint64_t>(run.first + (at - run.begin));
      const auto place = static_cast<unsigned>(number % 8);
      const auto here = run.random.block(number / 8);
      auto next = here;
      if (place + N > 8) next = run.random.block(number / 8 + 1);
      float m_out[N], v_out[N];
      Lanes<bf16, N> w_out;
#pragma unroll
      for (unsigned k = 0; k < N; ++k) {
        float master = w_in[u][k];
        m_out[k] = m_in[u][k];
        v_out[k] = v_in[u][k];
        adam_element(master, static_cast<float>(g_in[u][k]), m_out[k], v_out[k], run.decay, f);
        const auto random = place + k < 8 ? half_of(here, place + k) : half_of(next, place + k - 8);
        reinterpret_cast<bf16*>(w_out.word)[k] = rounded_stochastically(master, random);
      }
      w_out.store(w + at);
      Lanes<float, N>::of(m_out).store(m + at);
      Lanes<float, N>::of(v_out).store(v + at);
      continue;
    }
#pragma unroll 1
    for (std::int64_t i = at; i < at + N && i < n; ++i) {
      const int r = run_of(i);
      if (r == runs.count || i < runs.run[r].begin) continue;
      const auto& run = runs.run[r];
      const auto number = static_cast<std::uint64_t>(run.first + (i - run.begin));
      float master = w[i];
      adam_element(master, static_cast<float>(g[i]), m[i], v[i], run.decay, f);
      w[i] = rounded_stochastically(master, half_of(run.random.block(number / 8), static_cast<unsigned>(number % 8)));
    }
  }
}

}  // namespace detail

/// As on the CPU: one launch for up to 64 runs, which are in order.
template <CudaDevice D, class G>
void adam_stochastic(D& device, const AdamSpan<bf16, G, float>& s, std::span<const AdamStochasticRun> runs,
                     AdamStep step, std::uint64_t seed, std::uint64_t number) {
  std::int64_t elements = 0;
  for (const auto& run : runs) elements += run.range.size();
  if (elements == 0) return;
  const auto n = static_cast<std::int64_t>(s.weight.size());
  const Cost cost{.name = "adam",
                  .flops = 16.0 * static_cast<double>(elements),
                  .bytes = static_cast<double>(elements) * (2 * sizeof(bf16) + sizeof(G) + 4 * sizeof(float))};
  device.run(cost, [&](cudaStream_t stream) {
    const detail::AdamFactors<float> factors(step);
    using Runs = detail::AdamStochasticRuns;
    for (std::size_t i = 0; i < runs.size(); i += Runs::most) {
      Runs some;
      some.count = static_cast<int>(std::min<std::size_t>(Runs::most, runs.size() - i));
      for (int k = 0; k < some.count; ++k) {
        const auto& run = runs[i + static_cast<std::size_t>(k)];
        step.weight_decay = run.weight_decay;
        some.run[k] = {run.range.begin, run.range.end, run.first, detail::rounding_bits(seed, run.stream, number),
                       detail::AdamFactors<float>(step).decay};
      }
      constexpr int lanes = 4;
      const auto launch = [&]<int N>(std::integral_constant<int, N>) {
        const auto first = some.run[0].begin / N * N, end = some.run[some.count - 1].end;
        if (end <= first) return;
        const auto blocks =
            static_cast<unsigned>(ceil_div(end - first, std::int64_t{detail::adam_threads} * N * detail::adam_unroll));
        detail::adam_stochastic_kernel<N><<<blocks, detail::adam_threads, 0, stream>>>(
            s.weight.data(), s.gradient.data(), s.first.data(), s.second.data(), n, first, some, factors, step.clip);
      };
      if (detail::aligned_for<lanes>(s.weight.data(), s.gradient.data(), s.first.data(), s.second.data()))
        launch(std::integral_constant<int, lanes>{});
      else
        launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace zeropp::kernels
#endif
