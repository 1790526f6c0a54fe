// SPDX-License-Identifier: Apache-2.0
// Tokens to vectors: a table of tokens, and for GPT-2 a table of positions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <zeropp/kernels/embedding.hpp>
#include <zeropp/layers/context.hpp>

namespace zeropp {

struct EmbeddingOptions {
  std::int64_t vocabulary = 0;       ///< V
  std::int64_t sequence = 0;         ///< rows of the table of positions; 0: no such table (rotary positions)
  std::int64_t width = 0;            ///< C
  std::int64_t vocabulary_used = 0;  ///< rows that are real where the table is padded; 0: all
  std::string tokens = "wte", positions = "wpe";  ///< names
  float init_std = 0.02f, position_std = 0.02f;
};

/// Tokens [B, T] to [B, T, C]. Parameters wte.weight [V, C] and, with positions, wpe.weight [sequence, C].
class GptEmbedding {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .splits_backward = true};

  explicit GptEmbedding(EmbeddingOptions o) : options_(std::move(o)) {
    const auto vocabulary = detail::positive(options_.vocabulary, options_.tokens, "the vocabulary");
    auto& used = options_.vocabulary_used;
    if (used == 0) used = vocabulary;
    if (used < 1 || used > vocabulary)
      throw ConfigError(text(options_.tokens, ": ", used, " tokens do not fit a table of ", vocabulary, " rows"));
    if (options_.sequence < 0)
      throw ConfigError(text(options_.positions, ": the sequence must not be negative, got ", options_.sequence));
    detail::positive(options_.width, options_.tokens, "the width");
    tables.push_back({.name = options_.tokens + ".weight",
                      .shape = {options_.vocabulary, options_.width},
                      .init = Init::normal(options_.init_std),
                      .decay = true});
    if (options_.sequence > 0)
      tables.push_back({.name = options_.positions + ".weight",
                        .shape = {options_.sequence, options_.width},
                        .init = Init::normal(options_.position_std),
                        .decay = true});
    for (auto& table : tables) table.size();  // throws where it overflows
  }

  const EmbeddingOptions& options() const { return options_; }

  std::vector<Parameter> tables;  ///< tokens, and positions if there are any

  std::int64_t width() const { return options_.width; }
  std::string settings() const { return text("tokens ", options_.vocabulary_used); }
  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> all;
    for (auto& table : tables) all.push_back(&table);
    return all;
  }

  template <class C>
  auto forward(C& ctx, Tensor<std::int32_t, 2> tokens) {
    const auto sequence = tokens.extent(1);
    expect_sequence(sequence * ctx.context_shard.size());
    auto y = ctx.template make<3>({tokens.extent(0), sequence, options_.width});
    kernels::embedding_forward(ctx.device, tokens.span(), ctx.value(tables[0]), options_.vocabulary_used,
                               tables.size() > 1 ? ctx.value(tables[1]) : nullptr, sequence, y.data(), options_.width,
                               kernels::all_rows, ctx.context_shard.positions(sequence));
    return Forward{std::move(y), ctx.save(std::move(tokens))};
  }
  template <class C, class T>
  None backward(C& ctx, Tensor<T, 3> dy, Tensor<std::int32_t, 2> tokens) {
    ctx.weight_gradients([this, dy, tokens](auto& on) {
      kernels::embedding_backward(on.device, tokens.span(), dy.data(), on.gradient(tables[0]),
                                  tables.size() > 1 ? on.gradient(tables[1]) : nullptr, tokens.extent(1),
                                  options_.width, kernels::all_rows, on.context_shard.positions(tokens.extent(1)));
    });
    return {};
  }

  /// Throws ConfigError where sequences are longer than the table of positions.
  void expect_sequence(std::int64_t sequence) const {
    if (tables.size() > 1 && sequence > options_.sequence)
      throw ConfigError(text(tables[1].name, " holds ", options_.sequence, " positions, got sequences of ", sequence,
                             " tokens; shorten them, or build the model for a longer sequence"));
  }

 private:
  EmbeddingOptions options_;
};

}  // namespace zeropp
