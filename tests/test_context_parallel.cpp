// SPDX-License-Identifier: Apache-2.0
// Sequences shared by context ranks: attention by Ulysses and by a ring against whole sequences, with its gradients and
// its traffic; what every other layer does with its positions; batches, logits, plans; and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <vector>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/thread.hpp>
#include <zeropp/layers/swiglu.hpp>

#include "support/gradients.hpp"
#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

constexpr auto ulysses = ContextAttention::ulysses, ring = ContextAttention::ring;

template <class F>
void on_ranks(int ranks, F f) {
  run_ranks(ranks, {.limit = std::chrono::seconds(60)}, f);
}

/// This rank's positions of [B, T, ...].
template <class C, class T, int R>
Tensor<T, R> here(C& ctx, const Tensor<T, R>& whole, const ContextPart& part) {
  auto shape = whole.shape();
  const auto context = shape[1];
  shape[1] = part.share(context);
  const auto row = whole.size() / (shape[0] * context);
  auto mine = ctx.template make<R, T>(shape);
  for (std::int64_t b = 0; b < shape[0]; ++b)
    for (std::int64_t t = 0; t < shape[1]; ++t)
      std::copy_n(whole.data() + (b * context + part.positions(shape[1])[t]) * row, row,
                  mine.data() + (b * shape[1] + t) * row);
  return mine;
}

/// Largest difference over the largest expected number.
template <class A, class B>
double apart(const A& got, const B& expected) {
  REQUIRE(got.size() == expected.size());
  double worst = 0, size = 1e-30;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto x = static_cast<double>(got[i]), y = static_cast<double>(expected[i]);
    if (!std::isfinite(x)) return INFINITY;
    worst = std::max(worst, std::abs(x - y));
    size = std::max(size, std::abs(y));
  }
  return worst / size;
}

struct Case {
  int ranks;
  std::int64_t context;
  AttentionOptions attention;
};

/// Output and gradients on context ranks against those of whole sequences.
template <class P>
void against_whole(const Case& c, ContextAttention attention, double tolerance, std::int64_t batch = 2) {
  INFO(text(name_of(attention), ", ", c.ranks, " ranks, ", c.attention.heads, " heads over ", c.attention.kv_heads,
            ", ", batch, " x ", c.context, " tokens"));
  on_ranks(c.ranks, [&](Comm comm) {
    Cpu cpu;
    const ContextPart part{comm, attention};
    const Extents<3> shape{batch, c.context, c.attention.width};
    Placed<CausalSelfAttention, P> whole{cpu, {"attn", c.attention}, {.noise = 0.2f}};
    Placed<CausalSelfAttention, P> shared{cpu, {"attn", c.attention}, {.noise = 0.2f}};
    auto ctx = whole.context(), mine = shared.context({.part = part});
    const auto x = normal_tensor(ctx, shape, 3), dy = normal_tensor(ctx, shape, 4);
    auto [y, saved] = ctx.forward(whole.layer(), x);
    const auto dx = ctx.backward(whole.layer(), dy, std::move(saved));
    auto [my_y, my_saved] = mine.forward(shared.layer(), here(ctx, x, part));
    const auto my_dx = mine.backward(shared.layer(), here(ctx, dy, part), std::move(my_saved));
    CHECK(apart(my_y.span(), here(ctx, y, part).span()) <= tolerance);
    CHECK(apart(my_dx.span(), here(ctx, dx, part).span()) <= tolerance);
    for (auto* p : shared.parameters()) {
      CAPTURE(p->name);
      comm.all_reduce(shared.gradient(*p));
      CHECK(apart(shared.gradient(*p), whole.gradient(p->name)) <= tolerance);
    }
  });
}

std::vector<Case> cases() {
  return {{2, 12, {.width = 24, .heads = 4}},
          {3, 12, {.width = 24, .heads = 6, .rope_base = 10000}},
          {4, 16, {.width = 24, .heads = 6}},                                     // 1, 2, 1, 2 heads
          {4, 16, {.width = 24, .heads = 6, .kv_heads = 2, .rope_base = 10000}},  // two ranks a key head
          {4, 64, {.width = 12, .heads = 6, .kv_heads = 3}},                      // 2, 2, 1, 1 of the queries
          {4, 24, {.width = 16, .heads = 8, .kv_heads = 1}},
          {5, 20, {.width = 14, .heads = 7, .kv_heads = 7, .bias = false}},
          {3, 198, {.width = 24, .heads = 4, .kv_heads = 4}}};  // more than a tile of keys on a rank
}

}  // namespace

TEST_CASE("attention on context ranks is that of whole sequences") {
  for (const auto& c : cases()) {
    against_whole<Fp64>(c, ulysses, 1e-12);
    if (c.context % (2 * c.ranks) == 0) against_whole<Fp64>(c, ring, 1e-12);
  }
  const auto grouped = cases()[3];
  for (auto attention : {ulysses, ring}) {
    against_whole<Fp64>({8, 16, {.width = 16, .heads = 8, .kv_heads = 2}}, attention, 1e-12);
    against_whole<Fp64>(grouped, attention, 1e-12, 1);
    against_whole<Fp32>(grouped, attention, 1e-5);
    against_whole<Bf16>(grouped, attention, 0x1p-5);  // the same roundings to 8 bits, at other places
  }
}
