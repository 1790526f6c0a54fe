// SPDX-License-Identifier: Apache-2.0
// The layer concept. A layer declares parameters and two functions,
//   forward(ctx, x) -> Forward{output, saved}   and   backward(ctx, dy, saved) -> dx.
// `saved` is moved into backward and dies there. Gradients of parameters are *added* to ctx.gradient(parameter).
// A layer with layers inside calls them through `ctx` (ctx.forward(child, x)), so that wrappers can stand between.
#pragma once

#include <concepts>

#include <zeropp/layers/layer_traits.hpp>
#include <zeropp/layers/parameter.hpp>

namespace zeropp {

template <class Output, class Saved>
struct Forward {
  Output output;
  Saved saved;
};
template <class O, class S>
Forward(O, S) -> Forward<O, S>;

/// Nothing: what a layer without memory saves, and the dx of a layer whose input has no gradient (tokens).
struct None {};

namespace detail {
struct Ignore {
  template <class T>
  void operator()(T&) const {}
};
}  // namespace detail

/// A type that looks like a layer, asked without a context: it has parameters, children, or an inner layer.
/// (A layer without any of them, such as Gelu, declares an empty `parameters()`.)
template <class L>
concept Layer = std::movable<L> &&(
    requires(L& l) { l.parameters(); } || requires(L & l) { l.inner; } ||
    requires(L & l) { l.for_each_child(detail::Ignore{}); });

namespace detail {
/// For static_assert: of a concept, compilers list every alternative that failed, and the sentence drowns.
template <class L>
inline constexpr bool is_layer = Layer<L>;

/// Goes around a whole model and not into it: Sharded, and inside that PipelineStage.
template <class L>
inline constexpr bool around_model = traits_of<L>.around_model;

/// The model inside of those; L itself otherwise.
template <class L>
struct model_in {
  using type = L;
};
template <class L>
requires around_model<L>
struct model_in<L> {
  using type = typename L::Model;
};
}  // namespace detail

}  // namespace zeropp
