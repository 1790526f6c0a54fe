// SPDX-License-Identifier: Apache-2.0
// Layers one after the other. Derive a named struct from it rather than use an alias: symbols stay short.
//
//   struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention>, Residual<LayerNorm, Mlp>> { ... };
#pragma once

#include <tuple>
#include <utility>

#include <zeropp/layers/layer.hpp>

namespace zeropp {

template <class... Ls>
struct Sequential {
  static_assert(sizeof...(Ls) > 0, "Sequential needs at least one layer");
  static_assert((detail::is_layer<Ls> && ...),
                "Sequential<...> holds a type that is not a layer: a layer declares parameters(), or holds layers; see "
                "docs/own_layer.md");
  static constexpr bool container = true;

  std::tuple<Ls...> children;

  explicit(sizeof...(Ls) == 1) Sequential(Ls... layers) : children{std::move(layers)...} {}

  template <class F>
  void for_each_child(F&& f) {
    std::apply([&](auto&... child) { (f(child), ...); }, children);
  }

  template <class C, class X>
  auto forward(C& ctx, X x) {
    return forward_from<0>(ctx, std::move(x), std::tuple{});
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S saved) {
    return backward_from<sizeof...(Ls)>(ctx, std::move(dy), saved);
  }

 private:
  // What child I saves goes to the end of the tuple; its output is handed on and not kept here.
  template <std::size_t I, class C, class X, class S>
  auto forward_from(C& ctx, X x, S saved) {
    if constexpr (I == sizeof...(Ls)) {
      return Forward{std::move(x), std::move(saved)};
    } else {
      auto [output, own] = ctx.forward(std::get<I>(children), std::move(x));
      return forward_from<I + 1>(ctx, std::move(output),
                                 std::tuple_cat(std::move(saved), std::tuple<decltype(own)>{std::move(own)}));
    }
  }
  template <std::size_t I, class C, class D, class S>
  auto backward_from(C& ctx, D dy, S& saved) {
    if constexpr (I == 0)
      return dy;
    else
      return backward_from<I - 1>(
          ctx, ctx.backward(std::get<I - 1>(children), std::move(dy), std::move(std::get<I - 1>(saved))), saved);
  }
};

}  // namespace zeropp
