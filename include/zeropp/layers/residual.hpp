// SPDX-License-Identifier: Apache-2.0
// y = x + inner(x), with inner one layer or several in sequence.
#pragma once

#include <type_traits>
#include <utility>

#include <zeropp/layers/sequential.hpp>

namespace zeropp {

template <class... Ls>
struct Residual {
  static constexpr LayerTraits traits{.shares_context = true};

  using Inner = std::conditional_t<sizeof...(Ls) == 1, std::tuple_element_t<0, std::tuple<Ls...>>, Sequential<Ls...>>;
  Inner inner;

  explicit(sizeof...(Ls) == 1) Residual(Ls... layers) : inner{std::move(layers)...} {}

  template <class C, class X>
  auto forward(C& ctx, X x) {
    using Output = decltype(ctx.forward(inner, x).output);
    constexpr bool fits = std::is_same_v<Output, X> || detail::is_refused<Output>;
    static_assert(fits,
                  "Residual<...>: the output of the layers inside is added to their input; both must be of one type");
    if constexpr (fits)
      return ctx.forward_onto(inner, x, x);
    else
      return Forward{detail::Refused{}, detail::Refused{}};
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S saved) {
    auto onto = dy;
    return ctx.backward_onto(inner, std::move(dy), std::move(saved), std::move(onto));
  }
};

}  // namespace zeropp
