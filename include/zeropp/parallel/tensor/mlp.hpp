// SPDX-License-Identifier: Apache-2.0
// Mlp: the hidden channels are shared.
#pragma once

#include <utility>

#include <zeropp/layers/mlp.hpp>
#include <zeropp/parallel/tensor/linear.hpp>

namespace zeropp {

template <>
class TensorParallel<Mlp> {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  TensorParallel(const TensorOptions& o, const Mlp& whole)
      : TensorParallel(o, Halves{{o, whole.widen}, {o, whole.narrow}}, whole.recompute_gelu()) {}

  Mlp inner;
  detail::BiasAfterSum after;  ///< none where there is one rank: then `inner` has it

  template <class F>
  void for_each_child(F&& f) {  // the order of Mlp's parameters
    f(inner);
    f(after);
  }

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto own = ctx.save(x);
    auto [partial, saved] = ctx.forward(inner, group_.whole(ctx, std::move(x)));
    saved.x = std::move(own);  // this rank's positions; the others come again in backward
    return Forward{after.forward(ctx, group_.sum(ctx, std::move(partial))), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Mlp::Saved<T, R> saved) {
    after.backward(ctx, dy);
    saved.x = group_.whole(ctx, std::move(saved.x));
    return group_.sum(ctx, ctx.backward(inner, group_.whole(ctx, std::move(dy)), std::move(saved)));
  }

 private:
  struct Halves {
    TensorParallel<Linear, SplitBy::columns> widen;
    TensorParallel<Linear, SplitBy::rows> narrow;
  };
  TensorParallel(const TensorOptions& o, Halves halves, bool recompute_gelu)
      : inner{std::move(halves.widen.part), std::move(halves.narrow.part), recompute_gelu},
        after(std::move(halves.narrow.after)),
        group_(o) {}

  TensorGroup group_;
};

}  // namespace zeropp
