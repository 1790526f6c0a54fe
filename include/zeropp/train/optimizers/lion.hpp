// SPDX-License-Identifier: Apache-2.0
// Lion (Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675, program 2): the sign of a
// mixture of gradient and momentum. Half of Adam's state.
#pragma once

#include <array>
#include <string_view>

#include <zeropp/kernels/update_rule.hpp>

namespace zeropp {

struct Lion {
  static constexpr std::string_view name = "lion";
  static constexpr std::array<std::string_view, 1> slots{"momentum"};
  float beta1 = 0.9f, beta2 = 0.99f, weight_decay = 0.1f;

  constexpr std::array<kernels::RuleSetting, 2> settings() const {
    return {{{"beta1", beta1, 0, 1}, {"beta2", beta2, 0, 1}}};
  }
  template <class V>
  constexpr void operator()(V& weight, V gradient, V& momentum, const auto& step) const {
    const V direction = kernels::sign(kernels::mixed(momentum, beta1, gradient, 1 - beta1));
    weight = kernels::fused(weight, step.decay, -(direction * step.rate));
    momentum = kernels::mixed(momentum, beta2, gradient, 1 - beta2);
  }
};

}  // namespace zeropp
