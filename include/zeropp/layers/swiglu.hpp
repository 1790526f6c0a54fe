// SPDX-License-Identifier: Apache-2.0
// The gated feed-forward half of a Llama block: down(silu(gate(x)) · up(x)).
#pragma once

#include <string>
#include <utility>

#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/linear.hpp>

namespace zeropp {

struct SwiGluOptions {
  bool bias = false;
  float init_std = 0.02f, projection_std = 0.02f;
};

namespace detail {

/// SwiGlu, whatever the type of the last layer.
template <class Down>
class SwiGluCore {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  SwiGluCore(Linear of_gate, Linear of_up, Down of_down)
      : gate(std::move(of_gate)), up(std::move(of_up)), down(std::move(of_down)) {}

  Linear gate, up;
  Down down;

  template <class F>
  void for_each_child(F&& f) {
    f(gate);
    f(up);
    f(down);
  }

  template <class T, int R>
  struct Saved {
    Tensor<T, R> x, gate, up, product;
  };

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto [g, x_saved] = ctx.forward(gate, x);
    auto [u, same_x] = ctx.forward(up, std::move(x));
    same_x = {};
    auto product = ctx.make_like(g);
    kernels::swiglu_forward(ctx.device, g.span(), u.span(), product.span());
    auto saved = ctx.save(Saved<T, R>{std::move(x_saved), std::move(g), std::move(u), {}});
    auto [y, product_saved] = ctx.forward(down, std::move(product));
    saved.product = std::move(product_saved);
    return Forward{std::move(y), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Saved<T, R> saved) {
    auto dproduct = ctx.backward(down, std::move(dy), std::move(saved.product));
    auto dgate = ctx.make_like(saved.gate), dup = ctx.make_like(saved.up);
    kernels::swiglu_backward(ctx.device, saved.gate.span(), saved.up.span(), dproduct.span(), dgate.span(), dup.span());
    saved.gate = saved.up = dproduct = {};
    auto dx = ctx.backward(gate, std::move(dgate), saved.x);
    auto from_up = ctx.backward(up, std::move(dup), std::move(saved.x));
    kernels::add(ctx.device, dx.span(), from_up.span(), dx.span());
    return dx;
  }
};

}  // namespace detail

/// Children NAME.gate_proj and NAME.up_proj [hidden, width], NAME.down_proj [width, hidden].
class SwiGlu : public detail::SwiGluCore<Linear> {
 public:
  SwiGlu(const std::string& name, std::int64_t width, std::int64_t hidden, SwiGluOptions o = {})
      : SwiGluCore{Linear{name + ".gate_proj", width, hidden, {.bias = o.bias, .init_std = o.init_std}},
                   Linear{name + ".up_proj", width, hidden, {.bias = o.bias, .init_std = o.init_std}},
                   Linear{name + ".down_proj", hidden, width, {.bias = o.bias, .init_std = o.projection_std}}} {}
};

}  // namespace zeropp
