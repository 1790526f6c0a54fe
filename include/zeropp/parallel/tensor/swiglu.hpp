// SPDX-License-Identifier: Apache-2.0
// SwiGlu: the hidden channels are shared; gate and up take one input and so exchange together.
#pragma once

#include <utility>

#include <zeropp/layers/swiglu.hpp>
#include <zeropp/parallel/tensor/linear.hpp>

namespace zeropp {

template <>
class TensorParallel<SwiGlu> {
  using Core = detail::SwiGluCore<TensorParallel<Linear, SplitBy::rows>>;

 public:
  static constexpr LayerTraits traits{.shares_context = true};

  TensorParallel(const TensorOptions& o, const SwiGlu& whole)
      : group_(o), inner{share(whole.gate), share(whole.up), {o, whole.down}} {}

 private:
  TensorGroup group_;

 public:
  Core inner;

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto own = ctx.save(x);
    auto out = ctx.forward(inner, group_.whole(ctx, std::move(x)));
    out.saved.x = std::move(own);  // this rank's positions; the others come again in backward
    return out;
  }
  template <class C, class T, int R, class S>
  auto backward(C& ctx, Tensor<T, R> dy, S saved) {
    saved.x = group_.whole(ctx, std::move(saved.x));
    return group_.sum(ctx, ctx.backward(inner, std::move(dy), std::move(saved)));
  }

 private:
  Linear share(const Linear& whole) const {
    return detail::outputs_of(whole, {detail::share_of_outputs(whole, group_)}, group_.comm());
  }
};

}  // namespace zeropp
