// SPDX-License-Identifier: Apache-2.0
// Kernels of optimizers' rules against the copy bandwidth of the same run, on all threads. Buffers are far larger than any cache.
#include <benchmark/benchmark.h>

#include <thread>

#include <zeropp/app/machine.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>
#include <zeropp/train/optimizers/adamw.hpp>
#include <zeropp/train/optimizers/lion.hpp>

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

template <class W, class R = AdamW>
void update(benchmark::State& state) {
  std::vector<W> weight(count, W(0.5f));
  std::vector<kept_t<W>> masters(has_master<W> ? count : 0);
  std::vector<float> gradient(count, 0.01f);
  std::array<std::vector<float>, kernels::slot_count<R>> slots;
  kernels::UpdateSpan<W, float, float, slots.size()> buffers{weight, masters, gradient, {}};
  for (std::size_t s = 0; s < slots.size(); ++s) {
    slots[s].assign(count, 1e-4f);
    buffers.slots[s] = slots[s];
  }
  const kernels::UpdateRun run{.range = {0, count}, .weight_decay = 0.1f};
  copy_bandwidth();
  for (auto _ : state)
    kernels::update(device(), R{}, buffers, std::span{&run, 1}, kernels::UpdateStep{.learning_rate = 1e-4f, .number = 5});
  // 4·7 in fp32; 2·2 + 2·2 + 4 + 4·4 with bf16 weights: the same; 2 + 4·7 with f16 weights
  report(state, static_cast<double>(count) * kernels::detail::update_bytes<W, float, float, slots.size()>);
}
BENCHMARK(update<float>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);
BENCHMARK(update<bf16>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);
BENCHMARK(update<f16>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);
BENCHMARK(update<bf16, Lion>)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(2);

void adam_stochastic(benchmark::State& state) {
  std::vector<bf16> weight(count, bf16(0.5f)), gradient(count, bf16(0.01f));
  std::vector<float> first(count), second(count, 1e-4f);
  const kernels::UpdateRun run{{0, count}, 0.1f, 1, 1, 0};
  kernels::UpdateStep step{.learning_rate = 1e-4f};
  copy_bandwidth();
  for (auto _ : state) {
    ++step.number;
    kernels::update_stochastic(device(), AdamW{},
                               kernels::UpdateSpan<bf16, bf16, float, 2>{weight, {}, gradient, {first, second}},
                               std::span{&run, 1}, step, 7);
  }
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
