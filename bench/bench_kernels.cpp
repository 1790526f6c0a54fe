// SPDX-License-Identifier: Apache-2.0
// Kernels against their ceiling measured in the same run, on all threads: products, attention and the fused head as a
// share of the rate of a large product (of_gemm), the others of the rate of a copy (of_copy). Sizes are those of GPT-2
// 124M with 1024 tokens.
#include <benchmark/benchmark.h>

#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/norm.hpp>
#include <zeropp/app/machine.hpp>

using namespace zeropp;
using namespace zeropp::kernels;

namespace {

Cpu& device() {
  static Cpu cpu{{.threads = std::max(1, machine_cores())}};
  return cpu;
}
double products_a_second() {
  static const double rate = gemm_rate(Comm{}, device(), 1024, 768, 10);
  return rate;
}
double copied_a_second() {
  static const double rate = copy_rate(Comm{}, device(), std::size_t{128} << 20, 10);
  return rate;
}

template <class T>
std::vector<T> noise(std::int64_t n, std::uint64_t seed, float scale = 1) {
  const Random random(seed, RandomPurpose::test);
  std::vector<T> out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(scale * (2 * random.uniform(i) - 1));
  return out;
}

/// Runs `kernel`, which does `work` (operations, or bytes read and written), and compares with `ceiling` of them a
/// second.
template <class F>
void against(double ceiling, const char* unit, const char* share, benchmark::State& state, double work, F kernel) {
  for (auto _ : state) kernel();
  const double done = work * static_cast<double>(state.iterations());
  state.counters[unit] = benchmark::Counter(done / 1e9, benchmark::Counter::kIsRate);
  state.counters[share] = benchmark::Counter(done / ceiling, benchmark::Counter::kIsRate);
}
template <class F>
void against_products(benchmark::State& state, double flops, F kernel) {
  against(products_a_second(), "GFLOP/s", "of_gemm", state, flops, kernel);
}
template <class F>
void against_copy(benchmark::State& state, double bytes, F kernel) {
  against(copied_a_second(), "GB/s", "of_copy", state, bytes, kernel);
}

// ---- products: rows of activations, in, out

enum class Pass { forward, input, weight };

template <class T, Pass P>
void linear(benchmark::State& state) {
  const auto n = state.range(0), in = state.range(1), out = state.range(2);
  auto x = noise<T>(n * in, 1), w = noise<T>(in * out, 2), y = noise<T>(n * out, 3);
  std::vector<float> dw(w.size());
  against_products(state, 2.0 * static_cast<double>(n * in * out), [&] {
    if constexpr (P == Pass::forward)
      linear_forward(device(), x.data(), w.data(), static_cast<const T*>(nullptr), y.data(), n, in, out);
    if constexpr (P == Pass::input) linear_backward_input(device(), y.data(), w.data(), x.data(), n, in, out);
    if constexpr (P == Pass::weight)
      linear_backward_weight(device(), y.data(), x.data(), dw.data(), decltype(dw.data()){}, n, in, out);
  });
}
void gpt_shapes(benchmark::internal::Benchmark* b) {
  b->Args({1024, 768, 2304})->Args({1024, 768, 3072})->Args({1024, 3072, 768})->UseRealTime();
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(linear<float, Pass::forward>)->Apply(gpt_shapes);
BENCHMARK(linear<float, Pass::input>)->Apply(gpt_shapes);
BENCHMARK(linear<float, Pass::weight>)->Apply(gpt_shapes);
BENCHMARK(linear<bf16, Pass::forward>)->Apply(gpt_shapes);
BENCHMARK(linear<bf16, Pass::weight>)->Apply(gpt_shapes);

// ---- attention: T, with 12 heads of 64; the causal half of the scores is counted

template <class T>
struct Attention {
  AttentionShape shape;
  std::int64_t width = 12 * 64;
  std::vector<T> qkv, out, dout, dqkv;
  std::vector<compute_t<T>> lse;

  explicit Attention(std::int64_t sequence)
      : shape{1, sequence, 12, 12, 64},
        qkv(noise<T>(sequence * 3 * width, 1)),
        out(static_cast<std::size_t>(sequence * width)),
        dout(noise<T>(sequence * width, 2)),
        dqkv(qkv.size()),
        lse(static_cast<std::size_t>(12 * sequence)) {}

  HeadsView<const T> of(const std::vector<T>& packed, int which) const {
    return {packed.data() + which * width, 3 * width};
  }
  HeadsView<T> of(std::vector<T>& packed, int which) const { return {packed.data() + which * width, 3 * width}; }
  void forward() {
    const auto& in = qkv;
    causal_attention_forward<Cpu, T>(device(), shape, of(in, 0), of(in, 1), of(in, 2), {out.data(), width}, lse.data());
  }
  void backward() {
    const auto& in = qkv;
    causal_attention_backward<Cpu, T>(device(), shape, of(in, 0), of(in, 1), of(in, 2), {out.data(), width}, lse.data(),
                                      {dout.data(), width}, of(dqkv, 0), of(dqkv, 1), of(dqkv, 2));
  }
  /// The operations of one product of scores, all heads, below the diagonal.
  double product() const { return 12.0 * 64 * static_cast<double>(shape.sequence) * static_cast<double>(shape.sequence); }
};

template <class T>
void attention_forward(benchmark::State& state) {
  Attention<T> attention(state.range(0));
  against_products(state, 2 * attention.product(), [&] { attention.forward(); });
}
template <class T>
void attention_both(benchmark::State& state) {
  Attention<T> attention(state.range(0));
  against_products(state, 7 * attention.product(), [&] { attention.forward(), attention.backward(); });
}
BENCHMARK(attention_forward<float>)->Arg(256)->Arg(1024)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(attention_both<float>)->Arg(256)->Arg(1024)->Arg(4096)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(attention_both<bf16>)->Arg(1024)->Unit(benchmark::kMillisecond)->UseRealTime();

// ---- the head fused with the cross entropy: three products, loss and both gradients

template <class T>
void head(benchmark::State& state) {
  constexpr std::int64_t n = 1024, width = 768, vocabulary = 50304;
  auto x = noise<T>(n * width, 1), w = noise<T>(vocabulary * width, 2, 0.02f), dx = x;
  std::vector<float> dw(w.size());
  std::vector<std::int32_t> labels(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int32_t>(i * 49);
  against_products(state, 6.0 * n * width * vocabulary, [&] {
    linear_cross_entropy_backward(device(), x.data(), w.data(), labels, dx.data(), dw.data(), width, vocabulary,
                                  vocabulary, 1e-3);
  });
}
BENCHMARK(head<float>)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(head<bf16>)->Unit(benchmark::kMillisecond)->UseRealTime();

// ---- what reads and writes memory: 8192 rows of 768 (25 MB, which a large cache may hold in part); bytes that must
// move are counted

void layer_norm_forward(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto x = noise<float>(rows * width, 1), gamma = noise<float>(width, 2), y = x;
  std::vector<float> mean(static_cast<std::size_t>(rows)), rstd = mean;
  against_copy(state, 2.0 * 4 * static_cast<double>(rows * width), [&] {
    kernels::layer_norm_forward(device(), x.data(), gamma.data(), gamma.data(), 1e-5f, y.data(), mean.data(),
                                rstd.data(), rows, width);
  });
}
void layer_norm_backward(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto x = noise<float>(rows * width, 1), dy = noise<float>(rows * width, 3), gamma = noise<float>(width, 2), dx = x;
  std::vector<float> mean(static_cast<std::size_t>(rows)), rstd(mean.size(), 1.0f), dgamma = gamma, dbeta = gamma;
  against_copy(state, 3.0 * 4 * static_cast<double>(rows * width), [&] {
    kernels::layer_norm_backward(device(), dy.data(), x.data(), gamma.data(), mean.data(), rstd.data(), dx.data(),
                                 dgamma.data(), dbeta.data(), rows, width);
  });
}
void gelu(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto x = noise<float>(rows * width, 1), y = x;
  against_copy(state, 2.0 * 4 * static_cast<double>(rows * width),
               [&] { gelu_forward(device(), std::span{x}, std::span{y}); });
}
void gelu_gradient(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto x = noise<float>(rows * width, 1), dy = noise<float>(rows * width, 2), dx = x;
  against_copy(state, 3.0 * 4 * static_cast<double>(rows * width),
               [&] { gelu_backward(device(), std::span{x}, std::span{dy}, std::span{dx}); });
}
void residual(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto a = noise<float>(rows * width, 1), b = noise<float>(rows * width, 2);
  against_copy(state, 3.0 * 4 * static_cast<double>(rows * width),
               [&] { add(device(), std::span{a}, std::span{b}, std::span{a}); });
}
void dropout_mask(benchmark::State& state) {
  const auto rows = state.range(0), width = state.range(1);
  auto x = noise<float>(rows * width, 1), y = x;
  against_copy(state, 2.0 * 4 * static_cast<double>(rows * width),
               [&] { dropout(device(), std::span{x}, std::span{y}, 0.1f, Random(1, RandomPurpose::dropout), {}); });
}
BENCHMARK(layer_norm_forward)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(layer_norm_backward)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(gelu)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(gelu_gradient)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(residual)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(dropout_mask)->Args({8192, 768})->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
