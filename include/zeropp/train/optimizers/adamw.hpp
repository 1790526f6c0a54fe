// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019) as a rule, in the order of
// operations of torch.optim.AdamW.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include <zeropp/kernels/update_rule.hpp>

namespace zeropp {

struct AdamW {
  static constexpr std::string_view name = "adam";
  static constexpr std::array<std::string_view, 2> slots{"first_moment", "second_moment"};
  static constexpr double flops = 16;

  float beta1 = 0.9f, beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;  ///< for parameters that ask for it (Parameter::decay)

  constexpr std::array<kernels::RuleSetting, 3> settings() const {
    return {{{"beta1", beta1, 0, 1},
             {"beta2", beta2, 0, 1},
             {"epsilon", epsilon, std::numeric_limits<float>::min()}}};
  }

  /// m += (g - m)(1 - b1); v = v·b2 + g²(1 - b2); p = p·(1 - lr·wd) - lr/c1 · m / (√v/√c2 + ε), with c = 1 - b^number.
  template <class C>
  struct Update {
    C one_minus_beta1, beta2, one_minus_beta2, rate, root, epsilon;
    template <class V>
    constexpr void operator()(V& weight, V gradient, V& first, V& second, const kernels::ElementStep<C>& step) const {
      first = kernels::fused(gradient - first, one_minus_beta1, first);
      second = kernels::mixed(second, beta2, gradient * gradient, one_minus_beta2);
      const V divisor = kernels::fused(kernels::square_root(second), root, epsilon);
      weight = kernels::fused(weight, step.decay, -(first * (rate * step.factor) / divisor));
    }
  };
  template <class C>
  Update<C> at(const kernels::UpdateStep& s) const {
    const auto correction = [&](float beta) {
      return 1 - std::pow(static_cast<double>(beta), static_cast<double>(s.number));
    };
    return {.one_minus_beta1 = static_cast<C>(1 - static_cast<double>(beta1)),
            .beta2 = static_cast<C>(beta2),
            .one_minus_beta2 = static_cast<C>(1 - static_cast<double>(beta2)),
            .rate = static_cast<C>(static_cast<double>(s.learning_rate) / correction(beta1)),
            .root = static_cast<C>(1 / std::sqrt(correction(beta2))),
            .epsilon = static_cast<C>(epsilon)};
  }
};

}  // namespace zeropp
