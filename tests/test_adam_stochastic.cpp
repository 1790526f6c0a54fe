// SPDX-License-Identifier: Apache-2.0
// AdamW over bf16 weights without masters: the step of float weights, rounded by bits that are numbered by element;
// unbiased, where rounding to nearest stands still; the same bytes however a buffer is cut.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/kernels/update_stochastic.hpp>
#include <zeropp/train/optimizers/adamw.hpp>

using namespace zeropp;

namespace {

constexpr std::uint64_t seed = 7, stream = hash_of("h.0.mlp.weight");
using Runs = std::vector<kernels::UpdateRun>;
template <class W, class G>
using AdamSpan = kernels::UpdateSpan<W, G, float, 2>;

struct Buffers {
  explicit Buffers(std::size_t n, float value = 0) : weight(n, bf16(value)), gradient(n), first(n), second(n) {}
  static Buffers random(std::size_t n) {
    Buffers b(n);
    const Random normal(3, RandomPurpose::test);
    for (std::size_t i = 0; i < n; ++i) {
      b.weight[i] = bf16(static_cast<float>(normal.normal(i)));
      b.gradient[i] = bf16(static_cast<float>(normal.normal(n + i)));
    }
    return b;
  }
  template <class D>
  void step(D& device, const Runs& runs, const kernels::UpdateStep& s) {
    kernels::update_stochastic(
        device, AdamW{},
        AdamSpan<bf16, bf16>{.weight = weight, .masters = {}, .gradient = gradient, .slots = {first, second}},
        std::span<const kernels::UpdateRun>{runs}, s, seed);
  }
  bool operator==(const Buffers& other) const {
    return std::memcmp(static_cast<const void*>(weight.data()), other.weight.data(), 2 * weight.size()) == 0 &&
           first == other.first && second == other.second;
  }
  std::vector<bf16> weight, gradient;
  std::vector<float> first, second;
};

kernels::UpdateStep step_of(int t) { return {.learning_rate = 1e-3f, .number = t}; }

Runs whole(std::size_t n, float decay = 0.1f) { return {{{0, static_cast<std::int64_t>(n)}, decay, 1, stream, 0}}; }

double mean(const std::vector<bf16>& values) {
  double sum = 0;
  for (float v : values) sum += static_cast<double>(v);
  return sum / static_cast<double>(values.size());
}

}  // namespace

TEST_CASE("the numbers that round are Philox's, in halves, wherever a call begins") {
  const Random random(seed, RandomPurpose::stochastic_rounding, stream, 5);
  for (std::uint64_t first : {std::uint64_t{0}, std::uint64_t{3}, (std::uint64_t{1} << 32) - 4}) {
    std::uint16_t halves[64];
    kernels::random_halves<8>(random, first, halves);
    for (std::uint64_t i = 0; i < 64; ++i) {
      const auto word = random.bits(4 * first + i / 2);
      CHECK(halves[i] == static_cast<std::uint16_t>(i % 2 ? word >> 16 : word));
      CHECK(halves[i] == random.half(8 * first + i));
    }
  }
}

TEST_CASE("a step is that of float weights, rounded by the bits of seed, step, stream and element") {
  for (std::size_t n : {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{1000}, std::size_t{20001}}) {
    Cpu cpu;
    auto b = Buffers::random(n);
    std::vector<float> first(n), second(n);
    for (int t = 1; t <= 3; ++t) {
      std::vector<float> masters(b.weight.begin(), b.weight.end());
      const auto run = whole(n);
      kernels::update(cpu, AdamW{}, AdamSpan<float, bf16>{masters, {}, b.gradient, {first, second}},
                      std::span<const kernels::UpdateRun>{run}, step_of(t));
      b.step(cpu, run, step_of(t));
      const Random random(seed, RandomPurpose::stochastic_rounding, stream, static_cast<std::uint64_t>(t));
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < n; ++i)
        wrong += b.weight[i].bits != rounded_stochastically(masters[i], random.half(i)).bits;
      CHECK(wrong == 0);
      CHECK(b.first == first);
      CHECK(b.second == second);
    }
  }
}

TEST_CASE("the same bytes however a buffer is cut, at any alignment, on any number of threads") {
  constexpr std::size_t n = 50001;
  Cpu one, two{{.threads = 2}};
  auto base = Buffers::random(n), threads = base, pieces = base, other_stream = base, other_step = base;
  Runs cut, other = whole(n);
  for (std::int64_t begin = 0, size = 1; begin < static_cast<std::int64_t>(n); begin += size, size = size * 2 + 1)
    cut.push_back({{begin, std::min<std::int64_t>(n, begin + size)}, 0.1f, 1, stream, begin});
  other[0].stream = hash_of("h.1.mlp.weight");
  for (int t = 1; t <= 3; ++t) {
    base.step(one, whole(n), step_of(t));
    threads.step(two, whole(n), step_of(t));
    pieces.step(one, cut, step_of(t));
    other_stream.step(one, other, step_of(t));
    other_step.step(one, whole(n), step_of(t + 1));
  }
  CHECK(base == threads);
  CHECK(base == pieces);
  CHECK(base.first == other_stream.first);  // moments are not rounded
  CHECK(!(base == other_stream));
  CHECK(!(base == other_step));
}

TEST_CASE("unbiased: an update far below the step of bf16 arrives on average, where rounding to nearest loses it") {
  // Below 1 the step of bf16 is 2^-8. An update of 2^-8 / 40 a step, by weight decay alone, for 20 steps.
  constexpr std::size_t n = 1 << 16;
  constexpr int steps = 20;
  const double fraction = 1.0 / 40, unit = 0x1p-8;
  for (const float begin : {1.0f, -1.0f}) {
    Cpu cpu;
    Buffers b(n, begin);
    bf16 nearest(begin);
    double exact = begin;
    const float decay = static_cast<float>(fraction * unit);
    for (int t = 1; t <= steps; ++t) {
      auto s = step_of(t);
      s.learning_rate = 1;
      b.step(cpu, whole(n, decay), s);
      exact *= 1 - static_cast<double>(decay);
      nearest = bf16(static_cast<float>(nearest) * (1 - decay));
    }
    CHECK(static_cast<float>(nearest) == begin);
    const double variance = steps * fraction * (1 - fraction) * unit * unit;  // of an element
    const double error = std::sqrt(variance / n);
    MESSAGE("mean " << mean(b.weight) << ", exact " << exact << ": " << (mean(b.weight) - exact) / error
                    << " standard errors");
    CHECK(std::abs(mean(b.weight) - exact) < 4 * error);
    CHECK(std::abs(static_cast<double>(begin) - exact) > 100 * error);
    double spread = 0;
    for (float w : b.weight) spread += (static_cast<double>(w) - exact) * (static_cast<double>(w) - exact);
    CHECK(spread / n == doctest::Approx(variance).epsilon(0.05));  // elements and steps are independent
  }
}

TEST_CASE("unbiased: gradients, through Adam's moments") {
  // Adam's step of a steady gradient is the learning rate: 1/16 of bf16's step at 1.
  constexpr std::size_t n = 1 << 16;
  Cpu cpu;
  Buffers b(n, 1.5f);
  std::fill(b.gradient.begin(), b.gradient.end(), bf16(-0.25f));
  const double unit = 0x1p-7;
  constexpr int steps = 16;
  for (int t = 1; t <= steps; ++t) {
    auto s = step_of(t);
    s.learning_rate = static_cast<float>(unit / 16);
    b.step(cpu, whole(n, 0), s);
  }
  const double error = unit * std::sqrt(steps * (1.0 / 16) * (15.0 / 16) / n);
  MESSAGE("mean " << mean(b.weight) << ", exact " << 1.5 + unit);
  CHECK(std::abs(mean(b.weight) - (1.5 + unit)) < 4 * error);
}

TEST_CASE("zeros stay zeros, what is not finite stays so") {
  Cpu cpu;
  Buffers b(100);
  b.weight[50] = bf16(std::numeric_limits<float>::quiet_NaN());
  b.weight[51] = bf16(std::numeric_limits<float>::infinity());
  for (int t = 1; t <= 5; ++t) b.step(cpu, whole(100), step_of(t));
  CHECK(std::isnan(static_cast<float>(b.weight[50])));
  CHECK(std::isinf(static_cast<float>(b.weight[51])));
  for (std::size_t i = 0; i < 100; ++i)
    if (i / 2 != 25) CHECK(b.weight[i].bits == 0);
}

TEST_CASE("the dry device counts 22 bytes a parameter and touches nothing") {
  Dry dry;
  const auto nowhere = [](auto type) {
    return std::span{reinterpret_cast<decltype(type)*>(std::uintptr_t{1} << 46), 1000};
  };
  const auto runs = whole(1000);
  kernels::update_stochastic(
      dry, AdamW{},
      AdamSpan<bf16, bf16>{nowhere(bf16()), {}, nowhere(bf16()), {nowhere(0.0f), nowhere(0.0f)}},
      std::span<const kernels::UpdateRun>{runs}, step_of(1), seed);
  CHECK(dry.bytes() == 22.0 * 1000);
  CHECK(dry.kernels() == 1);
}
