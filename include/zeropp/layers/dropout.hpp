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

/// Which of several equal parts of this rank's positions is here.
struct SequenceShard {
  std::int64_t index = 0, parts = 1;
};

class Dropout {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  /// Elements are zeroed with probability p in [0, 1), the others scaled by 1/(1 − p).
  Dropout(std::string name, float p) : name_(std::move(name)), p_(p) {
    if (!(p >= 0 && p < 1)) throw ConfigError(text(name_, ": the probability of dropout must be in [0, 1), got ", p));
  }

  SequenceShard shard;  ///< of the inputs: their elements are counted in whole sequences

  /// Layers that draw numbers of one purpose need names of their own, or they draw the same: `Sharded` compares them.
  const std::string& random_name() const { return name_; }
  std::string settings() const { return text(name_, " drops ", p_); }

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
    static_assert(R >= 2, "Dropout works on [B, T, ...]: sequences, and positions of them");
    if (p_ == 0 || !ctx.training()) return x;
    auto y = x.unique() ? x : ctx.make_like(x);
    const auto row = x.extent(0) && x.extent(1) ? x.size() / (x.extent(0) * x.extent(1)) : 1;
    const auto here = x.extent(1) * row, whole = here * shard.parts * ctx.context_shard.size();
    kernels::dropout(
        ctx.device, x.span(), y.span(), p_, ctx.random(RandomPurpose::dropout, hash_of(name_)),
        {.first = ctx.first_sample * whole,
         .here = here,
         .whole = whole,
         .row = row,
         .positions = ctx.context_shard.positions(x.extent(1) * shard.parts).from(shard.index * x.extent(1))});
    return y;
  }

  std::string name_;
  float p_;
};

}  // namespace zeropp
