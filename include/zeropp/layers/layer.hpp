// SPDX-License-Identifier: Apache-2.0
// The layer concept. A layer declares parameters and two functions,
//   forward(ctx, x) -> Forward{output, saved}   and   backward(ctx, dy, saved) -> dx.
// `saved` is moved into backward and dies there. Gradients of parameters are *added* to ctx.gradient(parameter).
// A layer with layers inside calls them through the context (ctx.forward(child, x)), so that wrappers can stand
// between.
#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

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

/// A container (Sequential, Repeat, PipelineStage) only calls its children; `Sharded` looks through it for units.
template <class L>
concept Container = requires {
  requires L::container;
};

/// A container each of whose children is one unit, containers too (Repeat).
template <class L>
concept ContainerOfUnits = Container<L> && requires {
  requires L::children_are_units;
};

/// A layer whose output at a place of the sequence depends on its input at that place alone, and not on which place it
/// is: ranks may share the sequence without its knowing. It says so with `static constexpr bool per_position = true`.
template <class L>
concept PerPosition = requires {
  requires L::per_position;
};

/// A layer that is right, together with right children, where context ranks share the sequence: it passes positions on
/// alone, or asks `ctx.context_shard` for them. It says so with `static constexpr bool shares_context = true`.
template <class L>
concept SharesContext = requires {
  requires L::shares_context;
};

/// Calls f(child) for the direct children of a layer, in the order of its forward; nothing for a leaf.
template <class L, class F>
void for_each_child(L& layer, F&& f) {
  if constexpr (requires { layer.for_each_child(f); })
    layer.for_each_child(f);
  else if constexpr (requires { layer.inner; })
    f(layer.inner);
}

/// Calls f(Parameter&) for every parameter of a layer and of the layers inside it, in the order of the forward.
template <class L, class F>
void visit_parameters(L& layer, F&& f) {
  if constexpr (requires { layer.parameters(); })
    for (Parameter* parameter : layer.parameters()) f(*parameter);
  zeropp::for_each_child(layer, [&](auto& child) { visit_parameters(child, f); });
}

/// Calls f(name) for every layer inside that draws random numbers and says under which name (`random_name()`).
template <class L, class F>
void visit_random_names(L& layer, F&& f) {
  if constexpr (requires { layer.random_name(); }) f(layer.random_name());
  zeropp::for_each_child(layer, [&](auto& child) { visit_random_names(child, f); });
}

/// A layer whose backward leaves all work for gradients of weights to ctx.weight_gradients(), so that a schedule may
/// run it later. It says so with `static constexpr bool splits_backward = true`.
template <class L>
concept SplitsBackward = requires {
  requires L::splits_backward;
};

/// Whether a layer with all those inside can: each that has parameters of its own says so.
template <class L>
bool splits_backward(L& layer) {
  bool all = true;
  if constexpr (!SplitsBackward<L> && requires { layer.parameters(); }) all = layer.parameters().empty();
  zeropp::for_each_child(layer, [&](auto& child) { all = all && splits_backward(child); });
  return all;
}

/// A layer that can add its output onto another tensor in the operation that computes it: forward_onto(ctx, x, onto).
/// It says so with `using OutputOnto = <the layer itself>;`, so that a layer derived from it, whose forward may be
/// another, does not.
template <class L>
concept AddsOutputOnto = std::same_as<typename L::OutputOnto, L>;

/// The same for the gradient of its input: backward_onto(ctx, dy, saved, onto).
template <class L>
concept AddsGradientOnto = std::same_as<typename L::GradientOnto, L>;

namespace detail {
struct Ignore {
  template <class T>
  void operator()(T&) const {}
};
}  // namespace detail

/// What can be asked of any type without a context: it has parameters, children, or an inner layer.
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
inline constexpr bool around_model = requires {
  requires L::around_model;
};

/// What is inside of those; L itself otherwise.
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
