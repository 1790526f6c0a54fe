// SPDX-License-Identifier: Apache-2.0
// GPT-2: the model of mini_gpt, with Hugging Face's names.
#pragma once

#include <cmath>
#include <string>

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/sequential.hpp>

namespace mini_gpt {

using namespace zeropp;

struct ModelConfig {
  std::int64_t n_layer = 4, n_head = 4, n_embd = 192, block_size = 128;
  std::int64_t vocabulary = 2048;  ///< rows of the table
  std::int64_t tokens = 0;         ///< that they stand for; 0: all rows
  float dropout = 0;
  std::int64_t recompute_blocks = 0;  ///< so many, the first ones, keep only their input
  bool recompute_gelu = false;

  /// nanoGPT's sizes. Throws ConfigError for another name.
  static ModelConfig preset(const std::string& name) {
    if (name == "tiny") return {};
    const auto gpt2 = [](std::int64_t layers, std::int64_t heads, std::int64_t width) {
      return ModelConfig{layers, heads, width, 1024, 50304, 50257};
    };
    if (name == "124M") return gpt2(12, 12, 768);
    if (name == "355M") return gpt2(24, 16, 1024);
    if (name == "774M") return gpt2(36, 20, 1280);
    if (name == "1558M") return gpt2(48, 25, 1600);
    throw ConfigError(text("there is no model \"", name, "\"; the sizes are tiny, 124M, 355M, 774M, 1558M"));
  }

  /// Floating-point operations a token, forward and backward: 6 a parameter, and causal attention.
  double flops_per_token(std::int64_t parameters) const {
    return 6.0 * static_cast<double>(parameters) + 6.0 * static_cast<double>(n_layer * n_embd * block_size);
  }
};

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<LayerNorm, Mlp, Dropout>> {
  Block(const ModelConfig& c, const std::string& h)
      : Sequential{
            {LayerNorm{h + "ln_1", c.n_embd},
             CausalSelfAttention{h + "attn", {.width = c.n_embd, .heads = c.n_head, .projection_std = projection(c)}},
             Dropout{h + "attn.drop", c.dropout}},
            {LayerNorm{h + "ln_2", c.n_embd},
             Mlp{h + "mlp",
                 c.n_embd,
                 4 * c.n_embd,
                 {.projection_std = projection(c), .recompute_gelu = c.recompute_gelu}},
             Dropout{h + "mlp.drop", c.dropout}}} {}

 private:
  /// Weights that add to the residual stream begin smaller, the deeper the model (GPT-2).
  static float projection(const ModelConfig& c) { return 0.02f / std::sqrt(2.0f * static_cast<float>(c.n_layer)); }
};

struct Gpt : Sequential<GptEmbedding, Dropout, Repeat<Recompute<Block>>, LayerNorm, LmHead> {
  explicit Gpt(const ModelConfig& c)
      : Sequential{
            GptEmbedding{
                {.vocabulary = c.vocabulary, .sequence = c.block_size, .width = c.n_embd, .vocabulary_used = c.tokens}},
            Dropout{"drop", c.dropout}, blocks(c), LayerNorm{"ln_f", c.n_embd},
            LmHead{"lm_head", c.vocabulary, c.n_embd, {.tied_to = "wte.weight", .vocabulary_used = c.tokens}}} {}

 private:
  static Repeat<Recompute<Block>> blocks(const ModelConfig& c) {
    Repeat<Recompute<Block>> all;
    for (std::int64_t i = 0; i < c.n_layer; ++i)
      all.children.push_back({Block{c, text("h.", i, ".")}, i < c.recompute_blocks});
    return all;
  }
};

}  // namespace mini_gpt
