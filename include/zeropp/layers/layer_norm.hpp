// SPDX-License-Identifier: Apache-2.0
// LayerNorm over the last axis, with gain and bias.
#pragma once

#include <array>
#include <string>
#include <utility>

#include <zeropp/kernels/norm.hpp>
#include <zeropp/layers/context.hpp>

namespace zeropp {

/// Parameters NAME.weight [width] (ones) and NAME.bias [width] (zeros).
class LayerNorm {
 public:
  static constexpr LayerTraits traits{
      .per_position = true, .splits_backward = true, .adds_gradient_onto = &this_layer<LayerNorm>};

  LayerNorm(const std::string& name, std::int64_t width, float epsilon = 1e-5f)
      : width_(detail::positive(width, name, "the width")), epsilon_(epsilon) {
    gain = {.name = name + ".weight", .shape = {width}, .init = Init::constant(1)};
    bias = {.name = name + ".bias", .shape = {width}};
  }

  Parameter gain, bias;

  std::string settings() const { return text("epsilon ", epsilon_); }
  auto parameters() { return std::array{&gain, &bias}; }

  template <class Activation, int R>
  struct Saved {
    Tensor<Activation, R> x;
    Tensor<compute_t<Activation>, 1> mean, rstd;  ///< [rows]
  };

  template <class C, int R>
  auto forward(C& ctx, Tensor<typename C::Activation, R> x) {
    using T = typename C::Activation;
    detail::expect_width(x, width_, gain.name);
    auto y = ctx.make_like(x);
    Saved<T, R> saved{std::move(x), ctx.template make<1, compute_t<T>>({y.rows()}),
                      ctx.template make<1, compute_t<T>>({y.rows()})};
    kernels::layer_norm_forward(ctx.device, saved.x.data(), ctx.value(gain), ctx.value(bias),
                                static_cast<compute_t<T>>(epsilon_), y.data(), saved.mean.data(), saved.rstd.data(),
                                y.rows(), width_);
    return Forward{std::move(y), ctx.save(std::move(saved))};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Saved<T, R> saved) {
    return backward_onto(ctx, std::move(dy), std::move(saved), Tensor<T, R>{});
  }
  /// onto + dx; an empty `onto` is none.
  template <class C, class T, int R>
  auto backward_onto(C& ctx, Tensor<T, R> dy, Saved<T, R> saved, Tensor<T, R> onto) {
    const bool later = ctx.postpones();  // or one pass over dy and x gives both
    if (later)
      ctx.weight_gradients([this, dy, saved](auto& on) {
        const auto into = on.into(gain, bias);
        kernels::layer_norm_backward(on.device, dy.data(), saved.x.data(),
                                     static_cast<const typename C::Weight*>(nullptr), saved.mean.data(),
                                     saved.rstd.data(), static_cast<T*>(nullptr), on.gradient(gain), on.gradient(bias),
                                     dy.rows(), width_, static_cast<const T*>(nullptr), into);
      });
    auto dx = dy.unique() ? dy : onto && onto.unique() ? onto : ctx.make_like(dy);
    const auto into = later ? kernels::Into::add : ctx.into(gain, bias);
    kernels::layer_norm_backward(ctx.device, dy.data(), saved.x.data(), ctx.value(gain), saved.mean.data(),
                                 saved.rstd.data(), dx.data(), later ? nullptr : ctx.gradient(gain),
                                 later ? nullptr : ctx.gradient(bias), dx.rows(), width_,
                                 static_cast<const T*>(onto.data()), into);
    return dx;
  }

 private:
  std::int64_t width_;
  float epsilon_;
};

}  // namespace zeropp
