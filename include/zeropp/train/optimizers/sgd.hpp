// SPDX-License-Identifier: Apache-2.0
// Stochastic gradient descent with momentum, as torch.optim.SGD without dampening; weight decay is decoupled.
#pragma once

#include <array>
#include <string_view>

#include <zeropp/kernels/update_rule.hpp>

namespace zeropp {

struct Sgd {
  static constexpr std::string_view name = "sgd";
  static constexpr std::array<std::string_view, 1> slots{"momentum"};
  float momentum = 0.9f, weight_decay = 0;

  constexpr std::array<kernels::RuleSetting, 1> settings() const { return {{{"momentum", momentum, 0, 1}}}; }
  template <class V>
  constexpr void operator()(V& weight, V gradient, V& velocity, const auto& step) const {
    velocity = kernels::fused(velocity, momentum, gradient);
    weight = kernels::fused(weight, step.decay, -(velocity * step.rate));
  }
};

}  // namespace zeropp
