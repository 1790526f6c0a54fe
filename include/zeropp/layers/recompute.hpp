// SPDX-License-Identifier: Apache-2.0
// Activation checkpointing: keeps only the input of the inner layer; its forward runs again inside backward. The same
// bits as without, dropout included, for one more forward of time.
#pragma once

#include <type_traits>
#include <utility>

#include <zeropp/layers/layer.hpp>
#include <zeropp/layers/loss.hpp>

namespace zeropp {

template <class L>
struct Recompute;

namespace detail {
template <class L>
inline constexpr bool recomputes = false;
template <class L>
inline constexpr bool recomputes<Recompute<L>> = true;
}  // namespace detail

template <class L>
struct Recompute {
  static_assert(!detail::around_model<L>,
                "Recompute<PipelineStage<L>> and Recompute<Sharded<L>>: recompute what is inside, the blocks; write "
                "Repeat<Recompute<Block>> in L");
  static_assert(
      detail::is_layer<L> || detail::around_model<L>,
      "Recompute<L>: L is not a layer. A layer declares parameters(), or holds layers; see docs/own_layer.md");
  static_assert(!detail::recomputes<L>, "Recompute<Recompute<L>> would only run L twice more; write Recompute<L>");
  static constexpr bool shares_context = true;

  L inner;

  template <class C, class X>
  auto forward(C& ctx, X x) {
    auto saved = ctx.save(x);
    auto output = std::move(ctx.forward(inner, std::move(x)).output);  // what inner saved dies here
    static_assert(
        !std::is_same_v<decltype(output), Loss>,
        "Recompute<L>: L ends in a loss, which is known only after its own backward, and a head keeps no more "
        "than Recompute would; leave the head outside");
    return Forward{std::move(output), std::move(saved)};
  }
  template <class C, class D, class X>
  auto backward(C& ctx, D dy, X x) {
    auto saved = std::move(ctx.forward(inner, std::move(x)).saved);
    return ctx.backward(inner, std::move(dy), std::move(saved));
  }
};

}  // namespace zeropp
