// SPDX-License-Identifier: Apache-2.0
// y = x · Wᵀ + b over the last axis.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/kernels/matmul.hpp>
#include <zeropp/layers/context.hpp>

namespace zeropp {

struct LinearOptions {
  bool bias = true;
  float init_std = 0.02f;  ///< of the weight (normal); the bias begins at 0
};

/// Parameters NAME.weight [out, in] and NAME.bias [out].
class Linear {
 public:
  static constexpr LayerTraits traits{
      .shares_context = true, .splits_backward = true, .adds_output_onto = &this_layer<Linear>};

  Linear(const std::string& name, std::int64_t in, std::int64_t out, LinearOptions options = {})
      : in_(detail::positive(in, name, "the input width")), out_(detail::positive(out, name, "the output width")) {
    weight = {.name = name + ".weight", .shape = {out, in}, .init = Init::normal(options.init_std), .decay = true};
    weight.size();  // throws where it overflows
    if (options.bias) bias.push_back({.name = name + ".bias", .shape = {out}});
  }

  /// Takes parameters as they are: weight [out, in], and a bias [out] or none.
  explicit Linear(Parameter of_weight, std::vector<Parameter> of_bias = {})
      : weight(std::move(of_weight)), bias(std::move(of_bias)), in_(weight.shape.at(1)), out_(weight.shape.at(0)) {}

  Parameter weight;
  std::vector<Parameter> bias;  ///< one or none

  std::int64_t in() const { return in_; }
  std::int64_t out() const { return out_; }

  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> all{&weight};
    for (auto& b : bias) all.push_back(&b);
    return all;
  }

  template <class C, int R>
  auto forward(C& ctx, Tensor<typename C::Activation, R> x) {
    return forward_onto(ctx, std::move(x), Tensor<typename C::Activation, R>{});
  }
  /// onto + y; an empty `onto` is none.
  template <class C, int R>
  auto forward_onto(C& ctx, Tensor<typename C::Activation, R> x, Tensor<typename C::Activation, R> onto) {
    detail::expect_width(x, in_, weight.name);
    auto shape = x.shape();
    shape.back() = out_;
    if (onto) detail::expect_addable(shape, onto.shape());
    auto y = ctx.template make<R>(shape);
    kernels::linear_forward(ctx.device, x.data(), ctx.value(weight), bias_of(ctx), y.data(), x.rows(), in_, out_,
                            static_cast<const typename C::Activation*>(onto.data()));
    return Forward{std::move(y), ctx.save(std::move(x))};
  }
  template <class C, int R>
  auto backward(C& ctx, Tensor<typename C::Activation, R> dy, Tensor<typename C::Activation, R> x) {
    backward_weight(ctx, dy, x);
    auto dx = x.unique() ? std::move(x) : ctx.make_like(x);  // unless the saved input is needed later
    kernels::linear_backward_input(ctx.device, dy.data(), ctx.value(weight), dx.data(), dx.rows(), in_, out_);
    return dx;
  }
  /// The half of backward that gives gradients of weights, now or later.
  template <class C, int R>
  void backward_weight(C& ctx, const Tensor<typename C::Activation, R>& dy,
                       const Tensor<typename C::Activation, R>& x) {
    ctx.weight_gradients([this, dy, x](auto& on) {
      const auto into = bias.empty() ? on.into(weight) : on.into(weight, bias[0]);
      kernels::linear_backward_weight(on.device, dy.data(), x.data(), on.gradient(weight),
                                      bias.empty() ? nullptr : on.gradient(bias[0]), x.rows(), in_, out_, into);
    });
  }
  template <class C>
  const typename C::Weight* bias_of(C& ctx) const {
    return bias.empty() ? nullptr : ctx.value(bias[0]);
  }

 private:
  std::int64_t in_, out_;
};

}  // namespace zeropp
