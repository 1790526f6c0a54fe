// SPDX-License-Identifier: Apache-2.0
// Gelu in the tanh form of GPT-2. Keeps its input.
#pragma once

#include <array>
#include <utility>

#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/context.hpp>

namespace zeropp {

struct Gelu {
  static constexpr LayerTraits traits{.per_position = true};

  std::array<Parameter*, 0> parameters() { return {}; }

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto y = ctx.make_like(x);
    kernels::gelu_forward(ctx.device, x.span(), y.span());
    return Forward{std::move(y), ctx.save(std::move(x))};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Tensor<T, R> x) {
    auto dx = dy.unique() ? dy : ctx.make_like(dy);
    kernels::gelu_backward(ctx.device, x.span(), dy.span(), dx.span());
    return dx;
  }
};

}  // namespace zeropp
