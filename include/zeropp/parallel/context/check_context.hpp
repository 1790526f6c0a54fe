// SPDX-License-Identifier: Apache-2.0
// Layers that do not know about context ranks are refused where there are any.
#pragma once

#include <string>

#include <zeropp/layers/context_shard.hpp>
#include <zeropp/layers/visit.hpp>

namespace zeropp {

namespace detail {

[[noreturn]] inline void refuse_context(const std::string& layer, int ranks) {
  throw ConfigError(text(
      layer, " does not say that ", ranks,
      " context ranks can share its sequences: declare `static constexpr LayerTraits traits{.per_position = true}` "
      "in its type if it computes each position alone, or {.shares_context = true} if it asks "
      "ctx.context_shard which positions it has"));
}

/// Throws ConfigError unless every layer inside says that it is right on a part of the sequence.
template <class L>
void check_context(L& layer, const ContextShard& shard) {
  if constexpr (!PerPosition<L>) {
    if constexpr (!Container<L> && !SharesContext<L>) {
      std::string name;
      visit_parameters(layer, [&](Parameter& p) { name = name.empty() ? "the layer of " + p.name : name; });
      refuse_context(name.empty() ? "a layer without parameters" : name, shard.size());
    }
    if constexpr (requires { layer.check_context(shard); }) layer.check_context(shard);
    zeropp::for_each_child(layer, [&](auto& child) { check_context(child, shard); });
  }
}

}  // namespace detail

}  // namespace zeropp
