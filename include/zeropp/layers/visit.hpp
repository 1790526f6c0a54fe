// SPDX-License-Identifier: Apache-2.0
// Walks over a layer and the layers inside it: parameters, settings, names of what draws random numbers.
#pragma once

#include <iterator>
#include <string>
#include <type_traits>

#include <zeropp/base/function_ref.hpp>
#include <zeropp/layers/layer.hpp>

namespace zeropp {

namespace detail {

template <class L>
concept CallsChildren = requires(L& layer) {
  layer.for_each_child(Ignore{});
}
|| requires(L& layer, Ignore f) { layer.for_each_child(f); };
template <class L>
concept NamesChildren = requires {
  &L::template for_each_child<Ignore>;
}
|| requires { &L::template for_each_child<Ignore&>; };
template <class L>
concept HasParameters = requires(L& layer) {
  layer.parameters();
};
template <class L>
concept NamesParameters = requires {
  &L::parameters;
};
template <class L>
concept PointsToParameters = requires(L& layer) {
  static_cast<Parameter*>(*std::begin(layer.parameters()));
};

template <class L>
inline constexpr bool good_parameters = HasParameters<L>&& PointsToParameters<L>;

/// The checks of how a layer shows its children and parameters; a failure is said once for each layer.
template <class L>
struct ShownBy {
  static constexpr bool const_child = std::is_const_v<L>;
  static constexpr bool uncallable_children = !const_child && !CallsChildren<L> && NamesChildren<L>,
                        uncallable_parameters = !const_child && !HasParameters<L> && NamesParameters<L>,
                        bad_parameters = !const_child && HasParameters<L> && !PointsToParameters<L>;
  static_assert(!const_child,
                "for_each_child of a layer gives const children, whose parameters could not be placed; leave out the "
                "const of `for_each_child(F&& f)`");
  static_assert(!uncallable_children,
                "for_each_child of a layer cannot be called: declare `template <class F> void for_each_child(F&& f)` "
                "public, and call f with each child");
  static_assert(!uncallable_parameters,
                "parameters() of a layer cannot be called: declare it public and without arguments");
  static_assert(!bad_parameters,
                "parameters() of a layer returns pointers to its parameters: `return std::array{&weight};`");
};

}  // namespace detail

/// Calls f(child) for the direct children of a layer, in the order of its forward; nothing for a leaf.
template <class L, class F>
void for_each_child(L& layer, F&& f) {
  static_cast<void>(sizeof(detail::ShownBy<L>));
  if constexpr (std::is_const_v<L>) {
  } else if constexpr (requires { layer.for_each_child(f); }) {
    layer.for_each_child(f);
  } else if constexpr (requires { layer.inner; }) {
    f(layer.inner);
  }
}

/// Calls f(Parameter&) for every parameter of a layer and of the layers inside it, in the order of the forward.
template <class L>
void visit_parameters(L& layer, FunctionRef<void(Parameter&)> f) {
  if constexpr (detail::good_parameters<L>)
    for (Parameter* parameter : layer.parameters()) f(*parameter);
  zeropp::for_each_child(layer, [f](auto& child) { visit_parameters(child, f); });
}

/// Calls f(name) for every layer inside that draws random numbers and says under which name (`random_name()`).
template <class L>
void visit_random_names(L& layer, FunctionRef<void(const std::string&)> f) {
  if constexpr (requires { layer.random_name(); }) f(layer.random_name());
  zeropp::for_each_child(layer, [f](auto& child) { visit_random_names(child, f); });
}

/// Calls f(text) for every layer inside with settings that change numbers and that its parameters do not show
/// (`settings()`: a rate of dropout, an epsilon, a number of heads). Ranks compare them.
template <class L>
void visit_settings(L& layer, FunctionRef<void(const std::string&)> f) {
  if constexpr (requires { layer.settings(); }) f(layer.settings());
  zeropp::for_each_child(layer, [f](auto& child) { visit_settings(child, f); });
}

/// Whether a layer with all those inside splits its backward: each that has parameters of its own says so.
template <class L>
bool splits_backward(L& layer) {
  bool all = true;
  if constexpr (!SplitsBackward<L> && detail::good_parameters<L>) all = layer.parameters().empty();
  zeropp::for_each_child(layer, [&](auto& child) { all = all && splits_backward(child); });
  return all;
}

}  // namespace zeropp
