// SPDX-License-Identifier: Apache-2.0
// A layer's gradients in double against finite differences, for the input and every element of every parameter.
//
// How it is measured: f = Σ r·y with a fixed normal r (for a head, the sum of the losses); the derivative by the
// central difference of fourth order, (8 (f(+h) − f(−h)) − (f(+2h) − f(−2h))) / 12h, h = 1e-3. The error of an element
// is |gradient − difference| over max(|difference|, a thousandth of the largest difference of that tensor), at most
// 1e-6.
#pragma once

#include <doctest/doctest.h>

#include <cmath>

#include <zeropp/layers/loss.hpp>

#include "placed.hpp"

namespace test {

/// f as a function of the weights and x as they are now. A head's loss in training is known after its backward.
template <class M, class X>
double value_of(M& model, const RunState& run, const X& x) {
  auto ctx = model.context(run);
  auto [y, saved] = ctx.forward(model.layer(), x);
  if constexpr (std::is_same_v<decltype(y), Loss>) {
    ctx.backward(model.layer(), 1.0f, std::move(saved));
    return y.sum() * run.loss_weight;
  } else {
    const auto r = normal_tensor(ctx, y.shape(), 99);
    double sum = 0;
    for (std::int64_t i = 0; i < y.size(); ++i) sum += y.data()[i] * r.data()[i];
    return sum;
  }
}

/// dx, with the gradients of the parameters added in their places. `lend`: handles to x and dy are kept, so that no
/// layer may write into them.
template <class M, class X>
auto backward_of(M& model, const RunState& run, const X& x, bool lend) {
  auto ctx = model.context(run);
  auto [y, saved] = ctx.forward(model.layer(), x);
  if constexpr (std::is_same_v<decltype(y), Loss>) {
    return ctx.backward(model.layer(), 1.0f, std::move(saved));
  } else {
    auto dy = normal_tensor(ctx, y.shape(), 99);
    auto held = lend ? dy : decltype(dy){};
    auto held_y = lend ? y : decltype(y){};
    y = {};
    return ctx.backward(model.layer(), std::move(dy), std::move(saved));
  }
}

inline double worst = 0;  ///< of all tensors compared so far

template <class F>
void compare(const std::string& name, std::span<double> at, std::span<const double> gradient, F f) {
  std::vector<double> difference(at.size());
  double largest = 0;
  for (std::size_t i = 0; i < at.size(); ++i) {
    const double x = at[i], h = 1e-3;
    auto shifted = [&](double by) {
      at[i] = x + by;
      return f();
    };
    difference[i] = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h);
    at[i] = x;
    largest = std::max(largest, std::abs(difference[i]));
  }
  CAPTURE(name);
  REQUIRE(largest > 1e-3);  // a gradient of nothing would prove nothing
  double error = 0;
  for (std::size_t i = 0; i < at.size(); ++i)
    error = std::max(error, std::abs(gradient[i] - difference[i]) / std::max(std::abs(difference[i]), largest / 1000));
  CHECK(error <= 1e-6);
  worst = std::max(worst, error);
}

template <class L, class X>
void check_layer(Placed<L, Fp64>& model, const X& x, RunState run = {}) {
  const auto before = bytes_of(x);
  model.zero_gradients();
  const auto dx = backward_of(model, run, x, true);
  CHECK(bytes_of(x) == before);
  const auto gradients = model.gradient_bytes();
  std::vector<std::vector<double>> of_parameters;
  for (auto* p : model.parameters()) of_parameters.emplace_back(model.gradient(*p).begin(), model.gradient(*p).end());

  // the same bits where layers may write into the memory of dy and of what they saved
  model.zero_gradients();
  const auto again = backward_of(model, run, x, false);
  CHECK(model.gradient_bytes() == gradients);
  // gradients are added, not written: twice is double
  backward_of(model, run, x, false);
  for (std::size_t i = 0; i < of_parameters.size(); ++i)
    for (std::size_t k = 0; k < of_parameters[i].size(); ++k)
      REQUIRE(model.gradient(*model.parameters()[i])[k] ==
              doctest::Approx(2 * of_parameters[i][k]).epsilon(1e-12).scale(1e-9));

  auto f = [&] { return value_of(model, run, x); };
  if constexpr (!std::is_same_v<std::decay_t<decltype(dx)>, None>) {
    CHECK(bytes_of(again) == bytes_of(dx));
    CHECK(dx.shape() == x.shape());
    compare("the input", x.span(), dx.span(), f);
  }
  for (std::size_t i = 0; i < of_parameters.size(); ++i)
    compare(model.parameters()[i]->name, model.value(*model.parameters()[i]), of_parameters[i], f);
}

/// A layer from [2, 5, width] to anything.
template <class L>
void check_width(L layer, std::int64_t width, RunState run = {}) {
  Cpu cpu;
  Placed<L, Fp64> model{cpu, std::move(layer), {.noise = 0.3f}};
  auto ctx = model.context();
  check_layer(model, normal_tensor(ctx, Extents<3>{2, 5, width}, 3), run);
}

}  // namespace test
