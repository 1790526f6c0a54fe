// SPDX-License-Identifier: Apache-2.0
// Collectives of two thread ranks against a copy of the same bytes: what a rank sends and receives a second.
#include <benchmark/benchmark.h>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/app/machine.hpp>

using namespace zeropp;

namespace {

constexpr int ranks = 2;

/// Seconds of the best of some calls of f(comm, buffer) on all ranks.
template <class F>
double time_of(std::size_t count, F f) {
  double best = 0;
  run_ranks(ranks, [&](Comm comm) {
    std::vector<float> buffer(count, 1.0f);
    const int calls = count > 100000 ? 5 : 200;
    const double seconds = detail::best_time(comm, 5, [&] {
      for (int i = 0; i < calls; ++i) f(comm, std::span{buffer});
    });
    if (comm.rank() == 0) best = seconds / calls;
  });
  return best;
}

template <class F>
void measure(benchmark::State& state, F f) {
  const auto count = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) state.SetIterationTime(time_of(count, f));
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(count) * 4 / 1e9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
std::span<float> part_of(const Comm& comm, std::span<float> whole) {
  const auto share = whole.size() / ranks;
  return whole.subspan(static_cast<std::size_t>(comm.rank()) * share, share);
}

void all_reduce(benchmark::State& state) {
  measure(state, [](const Comm& comm, std::span<float> x) { comm.all_reduce(x); });
}
void reduce_scatter(benchmark::State& state) {
  measure(state, [](const Comm& comm, std::span<float> x) { comm.reduce_scatter(x, part_of(comm, x)); });
}
void all_gather(benchmark::State& state) {
  measure(state,
          [](const Comm& comm, std::span<float> x) { comm.all_gather(std::span<const float>{part_of(comm, x)}, x); });
}
void barrier(benchmark::State& state) {
  measure(state, [](const Comm& comm, std::span<float>) { comm.barrier(); });
}
BENCHMARK(barrier)->Arg(2)->UseManualTime()->Iterations(3)->Unit(benchmark::kMicrosecond);
BENCHMARK(all_reduce)
    ->Arg(64)
    ->Arg(1 << 16)
    ->Arg(1 << 22)
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(reduce_scatter)
    ->Arg(64)
    ->Arg(1 << 16)
    ->Arg(1 << 22)
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(all_gather)
    ->Arg(64)
    ->Arg(1 << 16)
    ->Arg(1 << 22)
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
