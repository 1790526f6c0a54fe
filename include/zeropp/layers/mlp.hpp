// SPDX-License-Identifier: Apache-2.0
// The feed-forward half of a GPT-2 block: widen, Gelu, narrow.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/sequential.hpp>

namespace zeropp {

struct MlpOptions {
  bool bias = true;
  float init_std = 0.02f, projection_std = 0.02f;
};

/// Children NAME.c_fc [hidden, width] and NAME.c_proj [width, hidden]. It runs the first product and the Gelu as one
/// operation, and so the gradients that go back through them.
struct Mlp : Sequential<Linear, Gelu, Linear> {
  using OutputOnto = Mlp;
  using GradientOnto = void;

  Mlp(const std::string& name, std::int64_t width, std::int64_t hidden, MlpOptions o = {})
      : Sequential{Linear{name + ".c_fc", width, hidden, {.bias = o.bias, .init_std = o.init_std}}, Gelu{},
                   Linear{name + ".c_proj", hidden, width, {.bias = o.bias, .init_std = o.projection_std}}} {}

  template <class T, int R>
  struct Saved {
    Tensor<T, R> x, pre, y;  ///< [..., width], [..., hidden] before and after the Gelu
  };

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    return forward_onto(ctx, std::move(x), Tensor<T, R>{});
  }
  template <class C, class T, int R>
  auto forward_onto(C& ctx, Tensor<T, R> x, Tensor<T, R> onto) {
    auto &widen = std::get<0>(children), &narrow = std::get<2>(children);
    detail::expect_width(x, widen.in(), widen.weight.name);
    auto shape = x.shape();
    shape.back() = widen.out();
    auto pre = ctx.template make<R>(shape), y = ctx.template make<R>(shape);
    kernels::linear_gelu_forward(ctx.device, x.data(), ctx.value(widen.weight), widen.bias_of(ctx), pre.data(),
                                 y.data(), x.rows(), widen.in(), widen.out());
    auto saved = ctx.save(Saved<T, R>{std::move(x), std::move(pre), {}});
    auto [output, y_saved] = narrow.forward_onto(ctx, std::move(y), std::move(onto));
    saved.y = std::move(y_saved);
    return Forward{std::move(output), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Saved<T, R> saved) {
    auto &widen = std::get<0>(children), &narrow = std::get<2>(children);
    narrow.backward_weight(ctx, dy, saved.y);
    auto dpre = saved.y.unique() ? std::move(saved.y) : ctx.make_like(saved.y);
    saved.y = {};
    kernels::linear_gelu_backward_input(ctx.device, dy.data(), ctx.value(narrow.weight),
                                        static_cast<const T*>(saved.pre.data()), dpre.data(), dy.rows(), narrow.in(),
                                        narrow.out());
    saved.pre = dy = {};
    return ctx.backward(widen, std::move(dpre), std::move(saved.x));
  }
};

}  // namespace zeropp
