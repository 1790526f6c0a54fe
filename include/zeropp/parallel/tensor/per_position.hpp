// SPDX-License-Identifier: Apache-2.0
// Layers that compute each position alone (norms, Gelu, yours that say so): every rank holds all their parameters, and
// computes all positions, or its own part of a shared sequence.
#pragma once

#include <utility>

#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/rms_norm.hpp>
#include <zeropp/parallel/tensor/group.hpp>

namespace zeropp {

template <PerPosition L>
struct TensorParallel<L, SplitBy::none> {
  static constexpr LayerTraits traits{.shares_context = true};

  TensorParallel(const TensorOptions& o, L whole) : inner(std::move(whole)) {
    const TensorGroup group{o};
    visit_parameters(inner, [&](Parameter& p) { group.replicate(p); });
  }

  L inner;

  template <class C, class X>
  auto forward(C& ctx, X x) {
    return ctx.forward(inner, std::move(x));
  }
  template <class C, class D, class S>
  auto backward(C& ctx, D dy, S saved) {
    return ctx.backward(inner, std::move(dy), std::move(saved));
  }
};

}  // namespace zeropp
