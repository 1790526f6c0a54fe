// SPDX-License-Identifier: Apache-2.0
// Every layer's gradients against finite differences: see support/gradients.hpp for how they are measured.
#include <doctest/doctest.h>

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

#include "support/gradients.hpp"

using namespace test;

namespace {

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
  check_width(Mlp{"mlp", 6, 11, {.recompute_gelu = true}}, 6);
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
  for (std::int64_t sequence : {0, 6}) {
    Placed<Model, Fp64> model{
        cpu,
        {GptEmbedding{{.vocabulary = 9, .sequence = sequence, .width = 5, .vocabulary_used = 7}}, Linear{"l", 5, 3}},
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
  RunState run{.loss_weight = 0.25, .labels = token_tensor(cpu, {2, 5}, 10, 8, 4)};
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
                          {GptEmbedding{{.vocabulary = 11, .sequence = 6, .width = 8}}, std::move(blocks),
                           LayerNorm{"ln_f", 8}, LmHead{"lm_head", 11, 8, {.tied_to = "wte.weight"}}},
                          {.noise = 0.3f}};
  check_layer(model, token_tensor(cpu, {2, 6}, 11, 2),
              {.step = 4, .first_sample = 2, .loss_weight = 0.1, .labels = token_tensor(cpu, {2, 6}, 11, 3, 5)});
}

TEST_CASE("the worst of them") {
  MESSAGE("largest relative error over all layers of this program: " << worst);
  CHECK(worst > 0);
}
