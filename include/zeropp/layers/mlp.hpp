// SPDX-License-Identifier: Apache-2.0
// The feed-forward half of a GPT-2 block: widen, Gelu, narrow. The first product and the Gelu run as one operation, and
// so do the gradients that go back through them.
#pragma once

#include <string>
#include <utility>

#include <zeropp/layers/linear.hpp>

namespace zeropp {

struct MlpOptions {
  bool bias = true;
  float init_std = 0.02f, projection_std = 0.02f;
  /// Keeps what goes into the Gelu and not what comes out: that is computed again in backward, from the rounded input.
  /// Saves a quarter of the activations of a GPT-2 block without Recompute, for one pass over them. A GPU's fused Gelu
  /// saw the input before it was rounded, so gradients there differ in their last bits from those without.
  bool recompute_gelu = false;
};

/// Children NAME.c_fc [hidden, width] and NAME.c_proj [width, hidden].
class Mlp {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .adds_output_onto = &this_layer<Mlp>};

  Mlp(const std::string& name, std::int64_t width, std::int64_t hidden, MlpOptions o = {})
      : Mlp{Linear{name + ".c_fc", width, hidden, {.bias = o.bias, .init_std = o.init_std}},
            Linear{name + ".c_proj", hidden, width, {.bias = o.bias, .init_std = o.projection_std}}, o.recompute_gelu} {
  }
  Mlp(Linear of_widen, Linear of_narrow, bool recompute_gelu)
      : widen(std::move(of_widen)), narrow(std::move(of_narrow)), recompute_gelu_(recompute_gelu) {}

  Linear widen, narrow;

  bool recompute_gelu() const { return recompute_gelu_; }

  template <class F>
  void for_each_child(F&& f) {
    f(widen);
    f(narrow);
  }

  template <class T, int R>
  struct Saved {
    Tensor<T, R> x, pre, y;  ///< [..., width], [..., hidden] before and after the Gelu; y is empty if it is recomputed
  };

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    return forward_onto(ctx, std::move(x), Tensor<T, R>{});
  }
  template <class C, class T, int R>
  auto forward_onto(C& ctx, Tensor<T, R> x, Tensor<T, R> onto) {
    detail::expect_width(x, widen.in(), widen.weight.name);
    auto shape = x.shape();
    shape.back() = widen.out();
    auto pre = ctx.template make<R>(shape), y = ctx.template make<R>(shape);
    kernels::linear_gelu_forward(ctx.device, x.data(), ctx.value(widen.weight), widen.bias_of(ctx), pre.data(),
                                 y.data(), x.rows(), widen.in(), widen.out());
    auto saved = ctx.save(Saved<T, R>{std::move(x), std::move(pre), {}});
    auto [output, y_saved] = narrow.forward_onto(ctx, std::move(y), std::move(onto));
    if (!recompute_gelu_) saved.y = std::move(y_saved);
    return Forward{std::move(output), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Saved<T, R> saved) {
    if (recompute_gelu_)
      ctx.weight_gradients([this, dy, pre = saved.pre](auto& on) mutable {
        auto y = on.make_like(pre);
        kernels::gelu_forward(on.device, pre.span(), y.span());
        narrow.backward_weight(on, dy, y);
      });
    else
      narrow.backward_weight(ctx, dy, saved.y);
    auto dpre = saved.y && saved.y.unique() ? std::move(saved.y) : ctx.make_like(saved.pre);
    saved.y = {};
    kernels::linear_gelu_backward_input(ctx.device, dy.data(), ctx.value(narrow.weight),
                                        static_cast<const T*>(saved.pre.data()), dpre.data(), dy.rows(), narrow.in(),
                                        narrow.out());
    saved.pre = dy = {};
    return ctx.backward(widen, std::move(dpre), std::move(saved.x));
  }

 private:
  bool recompute_gelu_;
};

}  // namespace zeropp
