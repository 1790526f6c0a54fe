// SPDX-License-Identifier: Apache-2.0
// A part of a model on a pipeline rank: consecutive layers, and what flows between such parts.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>

#include <zeropp/layers/context.hpp>
#include <zeropp/layers/loss.hpp>
#include <zeropp/layers/repeat.hpp>

namespace zeropp {

/// The value that flows through a pipeline: tokens into its first chunk, activations between, a loss out of the last.
template <class T>
struct PipelineValue {
  Tensor<std::int32_t, 2> tokens = {};
  Tensor<T, 3> x = {};
  Loss loss = {};
};

/// Consecutive layers of the model: some blocks, with the layers before them or behind them at the model's ends.
template <class Front, class Block, class Back>
struct PipelineChunk {
  static constexpr LayerTraits traits{.container = true};

  std::optional<Front> front;
  Repeat<Block> body;
  std::optional<Back> back;

  template <class F>
  void for_each_child(F&& f) {
    if (front) f(*front);
    f(body);
    if (back) f(*back);
  }

  template <class C>
  auto forward(C& ctx, PipelineValue<typename C::Activation> in) {
    std::optional<decltype(ctx.forward(*front, in.tokens).saved)> front_saved;
    std::optional<decltype(ctx.forward(*back, in.x).saved)> back_saved;
    if (front) {
      auto [x, saved] = ctx.forward(*front, std::move(in.tokens));
      in.x = std::move(x);
      front_saved.emplace(std::move(saved));
    }
    auto [x, body_saved] = ctx.forward(body, std::move(in.x));
    in.x = std::move(x);
    if (back) {
      auto [loss, saved] = ctx.forward(*back, std::move(in.x));
      in.x = {};
      in.loss = loss;
      back_saved.emplace(std::move(saved));
    }
    return Forward{std::move(in), std::tuple{std::move(front_saved), std::move(body_saved), std::move(back_saved)}};
  }
  /// dy is not looked at by the chunk with the loss; dx is empty from the chunk with the tokens.
  template <class C, class T, class S>
  auto backward(C& ctx, Tensor<T, 3> dy, S saved) {
    auto& [front_saved, body_saved, back_saved] = saved;
    if (back) dy = ctx.backward(*back, 1.0f, std::move(*back_saved));
    dy = ctx.backward(body, std::move(dy), std::move(body_saved));
    if (front) {
      ctx.backward(*front, std::move(dy), std::move(*front_saved));
      dy = {};
    }
    return dy;
  }
};

}  // namespace zeropp
