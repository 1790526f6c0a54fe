// SPDX-License-Identifier: Apache-2.0
// y = x + inner(x), with inner one layer or several in sequence.
#pragma once

#include <type_traits>
#include <utility>

#include <zeropp/base/shape.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/sequential.hpp>

namespace zeropp {

template <class... Ls>
struct Residual {
  static constexpr bool shares_context = true;

  using Inner = std::conditional_t<sizeof...(Ls) == 1, std::tuple_element_t<0, std::tuple<Ls...>>, Sequential<Ls...>>;
  Inner inner;

  explicit(sizeof...(Ls) == 1) Residual(Ls... layers) : inner{std::move(layers)...} {}

  template <class C, class X>
  auto forward(C& ctx, X x) {
    auto [output, saved] = ctx.forward(inner, x);
    constexpr bool fits = std::is_same_v<decltype(output), X>;
    static_assert(fits,
                  "Residual<...>: the output of the layers inside is added to their input; both must be of one type");
    if constexpr (fits) {  // or compilers would say a hundred lines more
      if (output.shape() != x.shape())
        throw ConfigError(text("Residual: the output of the layers inside has shape ", shape_text(output.shape()),
                               ", their input ", shape_text(x.shape()), "; only equal shapes can be added"));
      output = sum(ctx, std::move(output), std::move(x));
    }
    return Forward{std::move(output), std::move(saved)};
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S saved) {
    auto dx = ctx.backward(inner, dy, std::move(saved));
    return sum(ctx, std::move(dx), std::move(dy));
  }

 private:
  /// a + b, in the memory of one of them where nobody else sees it.
  template <class C, class T>
  static T sum(C& ctx, T a, T b) {
    auto out = a.unique() ? a : b.unique() ? b : ctx.make_like(a);
    kernels::add(ctx.device, a.span(), b.span(), out.span());
    return out;
  }
};

}  // namespace zeropp
