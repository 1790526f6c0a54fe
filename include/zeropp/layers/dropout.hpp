// SPDX-License-Identifier: Apache-2.0
// Dropout whose mask depends on the seed, the layer's name, the step and the element's place in the whole batch: the
// same on any number of ranks, and again when recomputed. The mask is never kept.
#pragma once

#include <array>
#include <string>
#include <utility>

#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/context.hpp>

namespace zeropp {

class Dropout {
 public:
  /// Elements are zeroed with probability p in [0, 1), the others scaled by 1/(1 − p).
  Dropout(const std::string& name, float p) : name_(hash_of(name)), p_(p) {
    if (!(p >= 0 && p < 1)) throw ConfigError(text(name, ": the probability of dropout must be in [0, 1), got ", p));
  }

  std::array<Parameter*, 0> parameters() { return {}; }

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    return Forward{drop(ctx, std::move(x)), None{}};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, None) {
    return drop(ctx, std::move(dy));
  }

 private:
  template <class C, class T, int R>
  Tensor<T, R> drop(C& ctx, Tensor<T, R> x) const {
    if (p_ == 0 || !ctx.training()) return x;
    auto y = x.unique() ? x : ctx.make_like(x);
    const auto sample = x.extent(0) ? x.size() / x.extent(0) : 0;
    kernels::dropout(ctx.device, x.span(), y.span(), p_, ctx.random(RandomPurpose::dropout, name_),
                     ctx.first_sample * sample);
    return y;
  }

  std::uint64_t name_;
  float p_;
};

}  // namespace zeropp
