// SPDX-License-Identifier: Apache-2.0
// Activation checkpointing: keeps only the input of the inner layer; its forward runs again inside backward. The same
// bits as without, dropout included, for one more forward of time. Each layer of a Repeat may be told not to: as many
// as memory asks for are recomputed, and no more.
#pragma once

#include <type_traits>
#include <utility>
#include <variant>

#include <zeropp/layers/loss.hpp>
#include <zeropp/layers/run.hpp>

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
  static constexpr LayerTraits traits{.shares_context = true};

  L inner;
  bool active = true;  ///< false: as L alone

  template <class C, class X>
  auto forward(C& ctx, X x) {
    using Inner = decltype(ctx.forward(inner, x));
    static_assert(
        !std::is_same_v<decltype(Inner::output), Loss>,
        "Recompute<L>: L ends in a loss, which is known only after its own backward, and a head keeps no more "
        "than Recompute would; leave the head outside");
    using Saved = std::variant<X, decltype(Inner::saved)>;
    Saved saved(std::in_place_index<0>, active ? ctx.save(x) : X{});
    auto [output, of_inner] = ctx.forward(inner, std::move(x));
    if (!active) saved.template emplace<1>(std::move(of_inner));
    return Forward{std::move(output), std::move(saved)};  // where it is active, what inner saved dies here
  }
  template <class C, class D, class X, class S>
  auto backward(C& ctx, D dy, std::variant<X, S> kept) {
    auto saved = kept.index() == 0 ? std::move(ctx.forward(inner, std::get<0>(std::move(kept))).saved)
                                   : std::get<1>(std::move(kept));
    return ctx.backward(inner, std::move(dy), std::move(saved));
  }
};

}  // namespace zeropp
