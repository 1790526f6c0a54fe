// SPDX-License-Identifier: Apache-2.0
// The calls of a layer's forward and backward. Every context makes them here, so that a layer that does not fit is
// refused in one sentence of ours, and nothing that follows from it is said: `Refused` goes on in the place of a
// result.
#pragma once

#include <type_traits>
#include <utility>

#include <zeropp/layers/layer.hpp>

namespace zeropp {

namespace detail {

/// The result of a call that a static_assert has refused; whatever is given one does nothing and hands it on.
struct Refused {};
template <class T>
inline constexpr bool is_refused = std::is_same_v<std::remove_cvref_t<T>, Refused>;

template <class T>
inline constexpr bool is_forward = false;
template <class Output, class Saved>
inline constexpr bool is_forward<Forward<Output, Saved>> = true;

}  // namespace detail

/// layer.forward(ctx, x): its Forward{output, saved}.
template <class C, class L, class X>
auto run_forward(C& ctx, L& layer, X x) {
  if constexpr (detail::is_refused<X>) {
    return Forward{detail::Refused{}, detail::Refused{}};
  } else if constexpr (requires { layer.forward(ctx, std::move(x)); }) {
    constexpr bool good = detail::is_forward<decltype(layer.forward(ctx, std::move(x)))>;
    static_assert(good, "forward(ctx, x) of a layer must return Forward{output, saved}");
    if constexpr (good)
      return layer.forward(ctx, std::move(x));
    else
      return Forward{detail::Refused{}, detail::Refused{}};
  } else {
    static_assert(detail::is_refused<X>,
                  "forward(ctx, x) of a layer does not take what the layer before it hands on: x comes by value, in "
                  "the precision's activations (Tensor<T, 3> for any T); an embedding takes tokens and comes first, a "
                  "head gives a loss and comes last");
    return Forward{detail::Refused{}, detail::Refused{}};
  }
}

/// layer.backward(ctx, dy, saved): the gradient of its input.
template <class C, class L, class D, class S>
auto run_backward(C& ctx, L& layer, D dy, S saved) {
  if constexpr (detail::is_refused<D> || detail::is_refused<S>) {
    return detail::Refused{};
  } else if constexpr (requires { layer.backward(ctx, std::move(dy), std::move(saved)); }) {
    constexpr bool good = !std::is_void_v<decltype(layer.backward(ctx, std::move(dy), std::move(saved)))>;
    static_assert(good,
                  "backward(ctx, dy, saved) of a layer must return the gradient of its input; None{} if there is "
                  "none");
    if constexpr (good)
      return layer.backward(ctx, std::move(dy), std::move(saved));
    else
      return detail::Refused{};
  } else {
    static_assert(detail::is_refused<D>,
                  "a layer needs backward(ctx, dy, saved) that takes the gradient of its output, and by value what its "
                  "forward saved");
    return detail::Refused{};
  }
}

}  // namespace zeropp
