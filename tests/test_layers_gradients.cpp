// SPDX-License-Identifier: Apache-2.0
// Every layer's gradients in double against finite differences, for the input and every element of every parameter.
//
// How it is measured: f = Σ r·y with a fixed normal r (for a head, the sum of the losses); the derivative by the
// central difference of fourth order, (8 (f(+h) − f(−h)) − (f(+2h) − f(−2h))) / 12h, h = 1e-3. The error of an element
// is |gradient − difference| over max(|difference|, a thousandth of the largest difference of that tensor), at most
// 1e-6.
#include <doctest/doctest.h>

#include <cmath>

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/rms_norm.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/layers/swiglu.hpp>

#include "support/placed.hpp"

using namespace test;

namespace {

/// f as a function of the weights and x as they are now. A head's loss in training is known after its backward.
template <class M, class X>
double value_of(M& model, const RunState& run, const X& x) {
  auto ctx = model.context(run);
  auto [y, saved] = ctx.forward(model.layer(), x);
  if constexpr (std::is_same_v<decltype(y), Loss>) {
    ctx.backward(model.layer(), 1.0f, std::move(saved));
    return y.sum() * run.loss_scale;
  } else {
    const auto r = normal_tensor(ctx, y.shape(), 99);
    double sum = 0;
    for (std::int64_t i = 0; i < y.size(); ++i) sum += y.data()[i] * r.data()[i];
    return sum;
  }
}

/// dx, with the gradients of the parameters added in their places. `lend`: handles to x and dy are kept, so that no
/// layer may write into them.
template <class M, class X>
auto backward_of(M& model, const RunState& run, const X& x, bool lend) {
  auto ctx = model.context(run);
  auto [y, saved] = ctx.forward(model.layer(), x);
  if constexpr (std::is_same_v<decltype(y), Loss>) {
    return ctx.backward(model.layer(), 1.0f, std::move(saved));
  } else {
    auto dy = normal_tensor(ctx, y.shape(), 99);
    auto held = lend ? dy : decltype(dy){};
    auto held_y = lend ? y : decltype(y){};
    y = {};
    return ctx.backward(model.layer(), std::move(dy), std::move(saved));
  }
}

double worst = 0;

template <class F>
void compare(const std::string& name, std::span<double> at, std::span<const double> gradient, F f) {
  std::vector<double> difference(at.size());
  double largest = 0;
  for (std::size_t i = 0; i < at.size(); ++i) {
    const double x = at[i], h = 1e-3;
    auto shifted = [&](double by) {
      at[i] = x + by;
      return f();
    };
    difference[i] = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h);
    at[i] = x;
    largest = std::max(largest, std::abs(difference[i]));
  }
  CAPTURE(name);
  REQUIRE(largest > 1e-3);  // a gradient of nothing would prove nothing
  double error = 0;
  for (std::size_t i = 0; i < at.size(); ++i)
    error = std::max(error, std::abs(gradient[i] - difference[i]) / std::max(std::abs(difference[i]), largest / 1000));
  CHECK(error <= 1e-6);
  worst = std::max(worst, error);
}

template <class L, class X>
void check_layer(Placed<L, Fp64>& model, const X& x, RunState run = {}) {
  const auto before = bytes_of(x);
  model.zero_gradients();
  const auto dx = backward_of(model, run, x, true);
  CHECK(bytes_of(x) == before);
  const auto gradients = model.gradient_bytes();
  std::vector<std::vector<double>> of_parameters;
  for (auto* p : model.parameters()) of_parameters.emplace_back(model.gradient(*p).begin(), model.gradient(*p).end());

  // the same bits where layers may write into the memory of dy and of what they saved
  model.zero_gradients();
  const auto again = backward_of(model, run, x, false);
  CHECK(model.gradient_bytes() == gradients);
  // gradients are added, not written: twice is double
  backward_of(model, run, x, false);
  for (std::size_t i = 0; i < of_parameters.size(); ++i)
    for (std::size_t k = 0; k < of_parameters[i].size(); ++k)
      REQUIRE(model.gradient(*model.parameters()[i])[k] ==
              doctest::Approx(2 * of_parameters[i][k]).epsilon(1e-12).scale(1e-9));

  auto f = [&] { return value_of(model, run, x); };
  if constexpr (!std::is_same_v<std::decay_t<decltype(dx)>, None>) {
    CHECK(bytes_of(again) == bytes_of(dx));
    CHECK(dx.shape() == x.shape());
    compare("the input", x.span(), dx.span(), f);
  }
  for (std::size_t i = 0; i < of_parameters.size(); ++i)
    compare(model.parameters()[i]->name, model.value(*model.parameters()[i]), of_parameters[i], f);
}

/// A layer from [2, 5, width] to anything.
template <class L>
void check_width(L layer, std::int64_t width, RunState run = {}) {
  Cpu cpu;
  Placed<L, Fp64> model{cpu, std::move(layer), {.noise = 0.3f}};
  auto ctx = model.context();
  check_layer(model, normal_tensor(ctx, Extents<3>{2, 5, width}, 3), run);
}

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<RmsNorm, SwiGlu>> {
  explicit Block(const std::string& h)
      : Sequential{{LayerNorm{h + "ln_1", 8}, CausalSelfAttention{h + "attn", {.width = 8, .heads = 2}},
                    Dropout{h + "drop", 0.3f}},
                   {RmsNorm{h + "ln_2", 8}, SwiGlu{h + "mlp", 8, 12}}} {}
};

}  // namespace

TEST_CASE("linear, with and without bias, on tensors of any rank") {
  check_width(Linear{"l", 6, 7}, 6);
  check_width(Linear{"l", 6, 4, {.bias = false}}, 6);
  Cpu cpu;
  Placed<Linear, Fp64> model{cpu, Linear{"l", 6, 7}, {.noise = 0.3f}};
  auto ctx = model.context();
  check_layer(model, normal_tensor(ctx, Extents<2>{5, 6}, 4));
  check_layer(model, normal_tensor(ctx, Extents<1>{6}, 5));
  check_layer(model, normal_tensor(ctx, Extents<4>{2, 1, 3, 6}, 6));
}

TEST_CASE("norms, also over more rows than one block of their kernels") {
  check_width(LayerNorm{"ln", 19}, 19);
  check_width(RmsNorm{"rms", 19}, 19);
  Cpu cpu;
  Placed<Sequential<LayerNorm, RmsNorm>, Fp64> model{cpu, {LayerNorm{"ln", 4}, RmsNorm{"rms", 4}}, {.noise = 0.3f}};
  auto ctx = model.context();
  check_layer(model, normal_tensor(ctx, Extents<2>{70, 4}, 4));
}

TEST_CASE("gelu, mlp, swiglu") {
  check_width(Gelu{}, 7);
  check_width(Mlp{"mlp", 6, 11}, 6);
  check_width(Mlp{"mlp", 6, 11, {.bias = false}}, 6);
  check_width(SwiGlu{"mlp", 6, 11}, 6);
  check_width(SwiGlu{"mlp", 6, 11, {.bias = true}}, 6);
}

TEST_CASE("attention: one head, many, grouped queries, rotary positions") {
  check_width(CausalSelfAttention{"attn", {.width = 6, .heads = 1}}, 6);
  check_width(CausalSelfAttention{"attn", {.width = 6, .heads = 3}}, 6);
  check_width(CausalSelfAttention{"attn", {.width = 8, .heads = 4, .kv_heads = 2, .bias = false}}, 8);
  check_width(CausalSelfAttention{"attn", {.width = 8, .heads = 2, .kv_heads = 1, .rope_base = 100}}, 8);
}

TEST_CASE("attention over more than one tile of its kernel") {
  Cpu cpu;
  using Model = Sequential<CausalSelfAttention, Linear>;  // few rows of weights: every element costs four forwards
  Placed<Model, Fp64> model{cpu,
                            {CausalSelfAttention{"attn", {.width = 4, .heads = 2, .rope_base = 50}}, Linear{"l", 4, 1}},
                            {.noise = 0.4f}};
  auto ctx = model.context();
  check_layer(model, normal_tensor(ctx, Extents<3>{1, 140, 4}, 4));
}

TEST_CASE("dropout, alone and where it passes everything") {
  check_width(Dropout{"drop", 0.4f}, 7, {.step = 3, .first_sample = 5});
  check_width(Dropout{"drop", 0}, 7);
}

TEST_CASE("embeddings, with positions and without, of a padded vocabulary") {
  Cpu cpu;
  using Model = Sequential<GptEmbedding, Linear>;
  for (std::int64_t context : {0, 6}) {
    Placed<Model, Fp64> model{
        cpu,
        {GptEmbedding{{.vocabulary = 9, .context = context, .width = 5, .vocabulary_used = 7}}, Linear{"l", 5, 3}},
        {.noise = 0.3f}};
    check_layer(model, token_tensor(cpu, {3, 5}, 7, 2));
  }
}

TEST_CASE("residual of one layer, of several, of one that passes its input on") {
  check_width(Residual<Linear>{Linear{"l", 6, 6}}, 6);
  check_width(Residual<LayerNorm, Mlp>{LayerNorm{"ln", 6}, Mlp{"mlp", 6, 8}}, 6);
  check_width(Residual<Gelu, Dropout>{Gelu{}, Dropout{"drop", 0}}, 6);
  check_width(Residual<Dropout>{Dropout{"drop", 0}}, 6);
}

TEST_CASE("containers: sequential in sequential, repeat of any depth, recompute with dropout") {
  using Inner = Sequential<Linear>;
  check_width(Sequential<Inner>{Inner{Linear{"l", 6, 5}}}, 6);
  for (int depth : {0, 1, 3}) {
    Repeat<Recompute<Block>> blocks;
    for (int i = 0; i < depth; ++i) blocks.children.push_back({Block{text("h.", i, ".")}});
    check_width(std::move(blocks), 8, {.step = 1});
  }
  check_width(Recompute<Residual<LayerNorm, Mlp>>{{LayerNorm{"ln", 6}, Mlp{"mlp", 6, 8}}}, 6);
}

TEST_CASE("head: tied and its own, padded vocabulary, labels that do not count, a scale of the loss") {
  Cpu cpu;
  RunState run{.loss_scale = 0.25, .labels = token_tensor(cpu, {2, 5}, 10, 8, 4)};
  {
    Placed<LmHead, Fp64> model{cpu, LmHead{"head", 10, 6}, {.noise = 0.5f}};
    auto ctx = model.context();
    check_layer(model, normal_tensor(ctx, Extents<3>{2, 5, 6}, 3), run);
  }
  {
    using Model = Sequential<LayerNorm, LmHead>;
    Placed<Model, Fp64> model{
        cpu, {LayerNorm{"ln", 6}, LmHead{"head", 16, 6, {.vocabulary_used = 10}}}, {.noise = 0.5f}};
    auto ctx = model.context();
    check_layer(model, normal_tensor(ctx, Extents<3>{2, 5, 6}, 3), run);
  }
}

TEST_CASE("a whole GPT with a tied head, recompute and dropout") {
  Cpu cpu;
  using Gpt = Sequential<GptEmbedding, Repeat<Recompute<Block>>, LayerNorm, LmHead>;
  Repeat<Recompute<Block>> blocks;
  for (int i = 0; i < 2; ++i) blocks.children.push_back({Block{text("h.", i, ".")}});
  Placed<Gpt, Fp64> model{cpu,
                          {GptEmbedding{{.vocabulary = 11, .context = 6, .width = 8}}, std::move(blocks),
                           LayerNorm{"ln_f", 8}, LmHead{"lm_head", 11, 8, {.tied_to = "wte.weight"}}},
                          {.noise = 0.3f}};
  check_layer(model, token_tensor(cpu, {2, 6}, 11, 2),
              {.step = 4, .first_sample = 2, .loss_scale = 0.1, .labels = token_tensor(cpu, {2, 6}, 11, 3, 5)});
}

TEST_CASE("the worst of them") {
  MESSAGE("largest relative error over all layers of this program: " << worst);
  CHECK(worst > 0);
}
