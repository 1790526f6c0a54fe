// SPDX-License-Identifier: Apache-2.0
// Adagrad (Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12, 2011), as torch.optim.Adagrad without a
// decay of the rate; weight decay is decoupled.
#pragma once

#include <array>
#include <string_view>

#include <zeropp/kernels/update_rule.hpp>

namespace zeropp {

struct Adagrad {
  static constexpr std::string_view name = "adagrad";
  static constexpr std::array<std::string_view, 1> slots{"sum_of_squares"};
  float epsilon = 1e-10f, weight_decay = 0;

  constexpr std::array<kernels::RuleSetting, 1> settings() const { return {{{"epsilon", epsilon, 1e-30f}}}; }
  template <class V>
  constexpr void operator()(V& weight, V gradient, V& sum, const auto& step) const {
    sum = kernels::fused(gradient, gradient, sum);
    const V divisor = kernels::square_root(sum) + epsilon;
    weight = kernels::fused(weight, step.decay, -(gradient * step.rate / divisor));
  }
};

}  // namespace zeropp
