// SPDX-License-Identifier: Apache-2.0
// Mlp: the hidden channels are shared.
#pragma once

#include <tuple>

#include <zeropp/layers/mlp.hpp>
#include <zeropp/parallel/tensor/linear.hpp>
#include <zeropp/parallel/tensor/per_position.hpp>

namespace zeropp {

template <>
struct TensorParallel<Mlp> : Sequential<TensorParallel<Linear, SplitBy::columns>, TensorParallel<Gelu>,
                                        TensorParallel<Linear, SplitBy::rows>> {
  TensorParallel(const TensorOptions& o, const Mlp& whole)
      : Sequential{
            {o, std::get<0>(whole.children)}, {o, std::get<1>(whole.children)}, {o, std::get<2>(whole.children)}} {}
};

}  // namespace zeropp
