// SPDX-License-Identifier: Apache-2.0
// One kind of layer, many times: the depth is a run-time value, so one instantiation serves every depth. Each element
// is a unit of its own: gathered, reduced and saved as a whole.
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/layers/run.hpp>

namespace zeropp {

/// The input and output of L have one type. No element at all is the identity.
template <class L>
struct Repeat {
  static_assert(detail::is_layer<L>,
                "Repeat<L>: L is not a layer. A layer declares parameters(), or holds layers; see docs/own_layer.md");
  static constexpr LayerTraits traits{.container = true, .children_are_units = true};

  std::vector<L> children;

  template <class F>
  void for_each_child(F&& f) {
    for (auto& child : children) f(child);
  }

  template <class C, class X>
  auto forward(C& ctx, X x) {
    using Result = decltype(ctx.forward_unit(children[0], x));
    constexpr bool fits = std::is_same_v<decltype(Result::output), X>;
    static_assert(fits || detail::is_refused<decltype(Result::output)>,
                  "Repeat<L>: the output of each element is the input of the next; both must be of one type");
    if constexpr (fits) {
      std::vector<decltype(Result::saved)> all;
      all.reserve(children.size());
      for (auto& child : children) {
        auto [output, saved] = ctx.forward_unit(child, std::move(x));
        x = std::move(output);
        all.push_back(std::move(saved));
      }
      return Forward{std::move(x), std::move(all)};
    } else {
      return Forward{detail::Refused{}, detail::Refused{}};
    }
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S all) {
    if constexpr (detail::is_refused<decltype(ctx.backward_unit(children[0], dy, std::move(all.back())))>) {
      return detail::Refused{};
    } else {
      for (std::size_t i = children.size(); i-- > 0;) {
        auto saved = std::move(all.back());
        all.pop_back();
        dy = ctx.backward_unit(children[i], std::move(dy), std::move(saved));
      }
      return dy;
    }
  }
};

}  // namespace zeropp
