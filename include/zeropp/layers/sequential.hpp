// SPDX-License-Identifier: Apache-2.0
// Layers one after the other. Derive a named struct from it rather than use an alias: symbols stay short.
//
//   struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention>, Residual<LayerNorm, Mlp>> { ... };
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include <zeropp/layers/run.hpp>

namespace zeropp {

template <class... Ls>
struct Sequential {
  static_assert(sizeof...(Ls) > 0, "Sequential needs at least one layer");
  static_assert((detail::is_layer<Ls> && ...),
                "Sequential<...> holds a type that is not a layer: a layer declares parameters(), or holds layers; see "
                "docs/own_layer.md");
  /// Adds onto others as far as the last layer does, or the first one.
  static constexpr LayerTraits traits{
      .container = true, .adds_output_onto = &this_layer<Sequential>, .adds_gradient_onto = &this_layer<Sequential>};

  std::tuple<Ls...> children;

  explicit(sizeof...(Ls) == 1) Sequential(Ls... layers) : children{std::move(layers)...} {}

  template <class F>
  void for_each_child(F&& f) {
    std::apply([&](auto&... child) { (f(child), ...); }, children);
  }

  template <class C, class X>
  auto forward(C& ctx, X x) {
    return forward_from<0>(ctx, std::move(x), std::tuple{}, None{});
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S saved) {
    return backward_from<sizeof...(Ls)>(ctx, std::move(dy), saved, None{});
  }
  template <class C, class X, class T>
  auto forward_onto(C& ctx, X x, T onto) {
    return forward_from<0>(ctx, std::move(x), std::tuple{}, std::move(onto));
  }
  template <class C, class D, class S, class T>
  auto backward_onto(C& ctx, D dy, S saved, T onto) {
    return backward_from<sizeof...(Ls)>(ctx, std::move(dy), saved, std::move(onto));
  }

 private:
  // Without anything to add onto, `onto` is None. Child I's saved value goes to the end of the tuple; its output is
  // handed on and not kept here.
  template <std::size_t I, class C, class X, class S, class T>
  auto forward_from(C& ctx, X x, S saved, T onto) {
    if constexpr (I == sizeof...(Ls)) {
      return Forward{std::move(x), std::move(saved)};
    } else {
      auto [output, own] = forward_child<I>(ctx, std::move(x), onto);
      return forward_from<I + 1>(ctx, std::move(output),
                                 std::tuple_cat(std::move(saved), std::tuple<decltype(own)>{std::move(own)}),
                                 std::move(onto));
    }
  }
  template <std::size_t I, class C, class D, class S, class T>
  auto backward_from(C& ctx, D dy, S& saved, T onto) {
    if constexpr (I == 0) {
      return dy;
    } else {
      auto dx = backward_child<I - 1>(ctx, std::move(dy), std::get<I - 1>(saved), onto);
      return backward_from<I - 1>(ctx, std::move(dx), saved, std::move(onto));
    }
  }
  template <std::size_t I, class C, class X, class T>
  auto forward_child(C& ctx, X x, T& onto) {
    auto& child = std::get<I>(children);
    if constexpr (I + 1 < sizeof...(Ls) || std::is_same_v<T, None>)
      return ctx.forward(child, std::move(x));
    else
      return ctx.forward_onto(child, std::move(x), std::move(onto));
  }
  template <std::size_t I, class C, class D, class S, class T>
  auto backward_child(C& ctx, D dy, S& saved, T& onto) {
    auto& child = std::get<I>(children);
    if constexpr (I > 0 || std::is_same_v<T, None>)
      return ctx.backward(child, std::move(dy), std::move(saved));
    else
      return ctx.backward_onto(child, std::move(dy), std::move(saved), std::move(onto));
  }
};

}  // namespace zeropp
