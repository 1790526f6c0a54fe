// SPDX-License-Identifier: Apache-2.0
// AdamW and other rules against scalar references in double; the same bytes however a buffer is cut; exact masters under bf16 weights.
// And the sum of squares that norms are made of.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/update.hpp>
#include <zeropp/train/optimizers/adagrad.hpp>
#include <zeropp/train/optimizers/adamw.hpp>
#include <zeropp/train/optimizers/lion.hpp>
#include <zeropp/train/optimizers/parameter_group.hpp>
#include <zeropp/train/optimizers/sgd.hpp>

using namespace zeropp;

namespace {

std::vector<float> normals(std::size_t n, std::uint64_t stream, double scale = 1) {
  const Random random(9, RandomPurpose::test, stream);
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<float>(scale * random.normal(i));
  return values;
}

kernels::UpdateStep step_of(int t, float scale = 1) {
  return {.learning_rate = 1e-3f, .number = t, .gradient_scale = scale};
}
/// One step of a rule over all of the buffers.
template <class R, class D, class W, class G, class M, std::size_t S>
void update(D& device, const R& rule, const kernels::UpdateSpan<W, G, M, S>& buffers, const kernels::UpdateStep& step) {
  const kernels::UpdateRun run{.range = {0, static_cast<std::int64_t>(buffers.weight.size())},
                               .weight_decay = rule.weight_decay};
  kernels::update(device, rule, buffers, std::span{&run, 1}, step);
}
template <class W, class G, class M>
using AdamSpan = kernels::UpdateSpan<W, G, M, 2>;

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

struct Buffers {
  explicit Buffers(std::size_t n) : weight(normals(n, 1)), first(n), second(n) {}
  std::vector<float> weight, first, second;

  template <class D, class G>
  void step(D& device, const std::vector<G>& gradient, const kernels::UpdateStep& s, std::size_t begin, std::size_t end) {
    const auto n = end - begin;
    update(device, AdamW{},
           AdamSpan<float, G, float>{
               .weight = std::span{weight}.subspan(begin, n),
               .masters = {},
               .gradient = std::span{gradient}.subspan(begin, n),
               .slots = {std::span{first}.subspan(begin, n), std::span{second}.subspan(begin, n)}},
           s);
  }
};

}  // namespace

TEST_CASE("fifty steps follow PyTorch's formula in double") {
  constexpr std::size_t n = 257;
  Cpu cpu;
  Buffers b(n);
  std::vector<double> w(b.weight.begin(), b.weight.end()), m(n), v(n);
  const double b1 = 0.9f, b2 = 0.95f, lr = 1e-3f, decay = 0.1f, eps = 1e-8f;
  for (int t = 1; t <= 50; ++t) {
    const auto g = normals(n, 100 + static_cast<std::uint64_t>(t), 0.01);
    b.step(cpu, g, step_of(t, 0.5f), 0, n);
    for (std::size_t i = 0; i < n; ++i) {
      const double grad = 0.5 * static_cast<double>(g[i]);
      w[i] *= 1 - lr * decay;
      m[i] = b1 * m[i] + (1 - b1) * grad;
      v[i] = b2 * v[i] + (1 - b2) * grad * grad;
      w[i] -= lr * (m[i] / (1 - std::pow(b1, t))) / (std::sqrt(v[i] / (1 - std::pow(b2, t))) + eps);
    }
  }
  for (std::size_t i = 0; i < n; ++i)
    CHECK(std::abs(static_cast<double>(b.weight[i]) - w[i]) <= 2e-6 * std::abs(w[i]) + 2e-7);
}

namespace {

/// Twenty steps of a rule with one slot, and of its reference in double.
template <class R, class F>
void follows(const R& rule, F&& reference) {
  constexpr std::size_t n = 257;
  Cpu cpu;
  std::vector<float> weight = normals(n, 1), slot(n);
  std::vector<double> w(weight.begin(), weight.end()), s(n);
  for (int t = 1; t <= 20; ++t) {
    auto g = normals(n, 100 + static_cast<std::uint64_t>(t), 0.01);
    g[5] = 0;  // a gradient may be zero, to the end
    update(cpu, rule, kernels::UpdateSpan<float, float, float, 1>{weight, {}, g, {slot}}, step_of(t));
    for (std::size_t i = 0; i < n; ++i) reference(w[i], static_cast<double>(g[i]), s[i]);
  }
  for (std::size_t i = 0; i < n; ++i) {
    CAPTURE(i);
    CHECK(std::abs(static_cast<double>(weight[i]) - w[i]) <= 1e-6 * (1 + std::abs(w[i])));
    CHECK(std::abs(static_cast<double>(slot[i]) - s[i]) <= 1e-6);
  }
}

}  // namespace

TEST_CASE("twenty steps of Lion follow its paper's program in double") {
  const double b1 = 0.9f, b2 = 0.99f, lr = 1e-3f, decay = 0.1f;
  follows(Lion{}, [&](double& w, double g, double& m) {
    const double c = b1 * m + (1 - b1) * g;
    w -= lr * ((c > 0) - (c < 0) + decay * w);
    m = b2 * m + (1 - b2) * g;
  });
}

TEST_CASE("twenty steps of SGD with momentum and of Adagrad follow PyTorch's formulas in double") {
  const double lr = 1e-3f, decay = 0.1f;
  follows(Sgd{.weight_decay = 0.1f}, [&](double& w, double g, double& momentum) {
    momentum = static_cast<double>(0.9f) * momentum + g;
    w = w * (1 - lr * decay) - lr * momentum;
  });
  follows(Adagrad{}, [&](double& w, double g, double& sum) {
    sum += g * g;
    w -= lr * g / (std::sqrt(sum) + static_cast<double>(1e-10f));
  });
}

TEST_CASE("a parameter group multiplies the rate, in the decay as well") {
  constexpr std::size_t n = 100;
  Cpu cpu;
  const auto g = normals(n, 8);
  Buffers apart(n), together(n);
  const AdamW rule{};
  auto s = step_of(1);
  const auto run = [&](Buffers& b, const kernels::UpdateRun& r) {
    kernels::update(cpu, rule, AdamSpan<float, float, float>{b.weight, {}, g, {b.first, b.second}}, std::span{&r, 1}, s);
  };
  run(together, {.range = {0, n}, .weight_decay = 0.1f, .rate = 0.25f});
  s.learning_rate *= 0.25f;
  run(apart, {.range = {0, n}, .weight_decay = 0.1f});
  CHECK(same_bytes(apart.weight, together.weight));
}

TEST_CASE("patterns of parameter groups: * is any text, ? any character, all of a name counts") {
  CHECK(matches("wte.*", "wte.weight"));
  CHECK(matches("h.*.attn.*", "h.11.attn.c_proj.bias"));
  CHECK(matches("*bias", "h.0.ln_1.bias"));
  CHECK(matches("h.?.mlp*", "h.3.mlp.c_fc.weight"));
  CHECK(!matches("h.?.mlp*", "h.13.mlp.c_fc.weight"));
  CHECK(!matches("wte", "wte.weight"));
  CHECK(!matches("", "a"));
  CHECK(matches("**", ""));
}

TEST_CASE("a buffer cut anywhere, at any alignment, on any number of threads, has the bytes of the whole") {
  for (std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{65},
                        std::size_t{1000}, std::size_t{50001}}) {
    Cpu one, two{{.threads = 2}};
    Buffers whole(n), threads(n), pieces(n);
    for (int t = 1; t <= 3; ++t) {
      const auto g = normals(n, 50 + static_cast<std::uint64_t>(t));
      whole.step(one, g, step_of(t), 0, n);
      threads.step(two, g, step_of(t), 0, n);
      for (std::size_t begin = 0, size = 1; begin < n; begin += size, size = size * 2 + 1)
        pieces.step(one, g, step_of(t), begin, std::min(n, begin + size));
    }
    for (const auto* other : {&threads, &pieces}) {
      CHECK(same_bytes(whole.weight, other->weight));
      CHECK(same_bytes(whole.first, other->first));
      CHECK(same_bytes(whole.second, other->second));
    }
  }
}

TEST_CASE("bf16 weights with remainders are the fp32 masters, exactly") {
  constexpr std::size_t n = 4099;
  Cpu cpu;
  Buffers masters(n);
  std::vector<bf16> weight(n);
  std::vector<std::int16_t> remainder(n);
  std::vector<float> first(n), second(n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto split = SplitMaster::from(masters.weight[i]);
    weight[i] = split.weight, remainder[i] = split.remainder;
  }
  for (int t = 1; t <= 20; ++t) {
    const auto g = normals(n, 300 + static_cast<std::uint64_t>(t));
    masters.step(cpu, g, step_of(t), 0, n);
    update(cpu, AdamW{}, AdamSpan<bf16, float, float>{weight, remainder, g, {first, second}}, step_of(t));
  }
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < n; ++i) {
    SplitMaster split;
    split.weight = weight[i], split.remainder = remainder[i];
    wrong += std::bit_cast<std::uint32_t>(split.master()) != std::bit_cast<std::uint32_t>(masters.weight[i]);
  }
  CHECK(wrong == 0);
}

TEST_CASE("f16 weights are the rounded masters beside them, in blocks and tails") {
  for (std::size_t n : {std::size_t{5}, std::size_t{64}, std::size_t{4099}}) {
    Cpu cpu;
    Buffers masters(n);
    std::vector<f16> weight(n);
    std::vector<float> whole = masters.weight, first(n), second(n);
    for (int t = 1; t <= 20; ++t) {
      const auto g = normals(n, 300 + static_cast<std::uint64_t>(t));
      masters.step(cpu, g, step_of(t), 0, n);
      update(cpu, AdamW{}, AdamSpan<f16, float, float>{weight, whole, g, {first, second}}, step_of(t));
    }
    CHECK(same_bytes(whole, masters.weight));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < n; ++i) wrong += weight[i].bits != f16(masters.weight[i]).bits;
    CHECK(wrong == 0);
  }
}

TEST_CASE("gradients in bf16 are read as the floats they are") {
  constexpr std::size_t n = 200;
  Cpu cpu;
  Buffers a(n), b(n);
  std::vector<bf16> narrow(n);
  std::vector<float> wide(n);
  const auto g = normals(n, 7);
  for (std::size_t i = 0; i < n; ++i) narrow[i] = bf16(g[i]), wide[i] = narrow[i];
  a.step(cpu, narrow, step_of(1), 0, n);
  b.step(cpu, wide, step_of(1), 0, n);
  CHECK(same_bytes(a.weight, b.weight));
}

TEST_CASE("a clip in the device's memory counts as the factor it holds; where it is not finite nothing changes") {
  constexpr std::size_t n = 300;
  Cpu cpu;
  const auto g = normals(n, 3);
  Buffers given(n), read(n);
  const GradientNorm clip{.norm = 3, .factor = 0.37f}, broken{.finite = false};
  auto s = step_of(1, 0.25f * 0.37f);
  given.step(cpu, g, s, 0, n);
  s.gradient_scale = 0.25f;
  s.clip = &clip;
  read.step(cpu, g, s, 0, n);
  CHECK(same_bytes(read.weight, given.weight));
  CHECK(same_bytes(read.first, given.first));
  s.clip = &broken;
  read.step(cpu, g, s, 0, n);
  CHECK(same_bytes(read.weight, given.weight));
  CHECK(same_bytes(read.first, given.first));
  CHECK(same_bytes(read.second, given.second));
}

TEST_CASE("a norm above the limit is clipped to it, as PyTorch does; NaN and infinity are not finite") {
  CHECK(GradientNorm::of(2, 1).factor == static_cast<float>(1 / (2 + 1e-6)));
  CHECK(GradientNorm::of(0.5, 1).factor == 1);
  CHECK(GradientNorm::of(2, 0).factor == 1);
  CHECK(GradientNorm::of(2, 1).finite);
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(!GradientNorm::of(bad, 1).finite);
    CHECK(GradientNorm::of(bad, 1).factor == 1);
  }
}

TEST_CASE("the dry device counts and touches nothing") {
  Dry dry;
  auto* nowhere = reinterpret_cast<float*>(std::uintptr_t{1} << 46);
  const std::span<float> span{nowhere, 1000};
  update(dry, AdamW{}, AdamSpan<float, float, float>{span, {}, span, {span, span}}, step_of(1));
  CHECK(dry.bytes() == 28.0 * 1000);
  CHECK(kernels::sum_of_squares(dry, span) == 0);
  CHECK(dry.kernels() == 2);
  const std::span<f16> half{reinterpret_cast<f16*>(nowhere), 1000};
  update(dry, AdamW{}, AdamSpan<f16, float, float>{half, span, span, {span, span}}, step_of(1));
  CHECK(dry.bytes() == (28.0 + 4 + 28) * 1000 + 2.0 * 1000);  // the sum's 4; weights are written, masters both
}

TEST_CASE("the sum of squares has one order: threads and alignment do not change it, NaN comes through") {
  for (std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{4096}, std::size_t{100003}}) {
    Cpu one, two{{.threads = 2}};
    const auto x = normals(n, 5);
    std::vector<float> shifted(n + 3);
    std::copy(x.begin(), x.end(), shifted.begin() + 3);
    double plain = 0;
    for (float v : x) plain += static_cast<double>(v) * static_cast<double>(v);
    const double sum = kernels::sum_of_squares(one, std::span{x});
    CHECK(sum == doctest::Approx(plain).epsilon(1e-12));
    CHECK(kernels::sum_of_squares(two, std::span{x}) == sum);
    CHECK(kernels::sum_of_squares(one, std::span{shifted}.subspan(3)) == sum);
  }
  Cpu cpu;
  std::vector<float> bad(100, 1.0f);
  bad[99] = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(kernels::sum_of_squares(cpu, std::span{bad})));
  bad[99] = -std::numeric_limits<float>::infinity();
  CHECK(std::isinf(kernels::sum_of_squares(cpu, std::span{bad})));
}
