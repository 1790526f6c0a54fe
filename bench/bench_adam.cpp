// SPDX-License-Identifier: Apache-2.0
// FusedAdam's kernel against the copy bandwidth of the same run, on all threads. Buffers are far larger than any cache.
#include <benchmark/benchmark.h>

#include <thread>

#include <zeropp/kernels/adam.hpp>
#include <zeropp/kernels/adam_stochastic.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/app/machine.hpp>

using namespace zeropp;

namespace {

constexpr std::size_t count = std::size_t{1} << 25;

Cpu& device() {
  static Cpu cpu{{.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))}};
  return cpu;
}
/// Bytes a second, read and written, of a plain copy between two buffers.
double copy_bandwidth() {
  static const double rate = copy_rate(Comm{}, device(), count * 4, 10);
  return rate;
}
void report(benchmark::State& state, double bytes) {
  const double done = bytes * static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(done / 1e9, benchmark::Counter::kIsRate);
  state.counters["of_copy"] = benchmark::Counter(done / copy_bandwidth(), benchmark::Counter::kIsRate);
}

template <class W>
void adam(benchmark::State& state) {
  std::vector<W> weight(count, W(0.5f));
  std::vector<kept_t<W>> masters(has_master<W> ? count : 0);
  std::vector<float> gradient(count, 0.01f), first(count), second(count, 1e-4f);
  const kernels::AdamStep step{
      .learning_rate = 1e-4f, .weight_decay = 0.1f, .bias_correction1 = 0.5, .bias_correction2 = 0.5};
  copy_bandwidth();
  for (auto _ : state)
    kernels::adam(device(), kernels::AdamSpan<W, float, float>{weight, masters, gradient, first, second}, step);
  // 4·7 in fp32; 2·2 + 2·2 + 4 + 4·4 with bf16 weights: the same; 2 + 4·7 with f16 weights
  report(state, static_cast<double>(count) * kernels::detail::adam_bytes<W, float, float>);
}
BENCHMARK(adam<float>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);
BENCHMARK(adam<bf16>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);
BENCHMARK(adam<f16>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

void adam_stochastic(benchmark::State& state) {
  std::vector<bf16> weight(count, bf16(0.5f)), gradient(count, bf16(0.01f));
  std::vector<float> first(count), second(count, 1e-4f);
  const kernels::AdamStep step{.learning_rate = 1e-4f, .bias_correction1 = 0.5, .bias_correction2 = 0.5};
  const kernels::AdamStochasticRun run{{0, count}, 0.1f, 1, 0};
  std::uint64_t number = 0;
  copy_bandwidth();
  for (auto _ : state)
    kernels::adam_stochastic(device(), kernels::AdamSpan<bf16, bf16, float>{weight, {}, gradient, first, second},
                             std::span{&run, 1}, step, 7, ++number);
  report(state, static_cast<double>(count) * 22);
}
BENCHMARK(adam_stochastic)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

void norm(benchmark::State& state) {
  const std::vector<float> gradient(count, 0.01f);
  copy_bandwidth();
  for (auto _ : state) benchmark::DoNotOptimize(kernels::sum_of_squares(device(), std::span{gradient}));
  report(state, static_cast<double>(count) * 4);
}
BENCHMARK(norm)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(1);

}  // namespace
