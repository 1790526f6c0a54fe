// SPDX-License-Identifier: Apache-2.0
// Dropout between the split products: every rank draws the numbers of the elements that it holds.
#pragma once

#include <utility>

#include <zeropp/layers/dropout.hpp>
#include <zeropp/parallel/tensor/group.hpp>

namespace zeropp {

template <>
struct TensorParallel<Dropout> : Dropout {
  TensorParallel(const TensorOptions& o, Dropout whole) : Dropout(std::move(whole)) { shard = TensorGroup{o}.sequence_shard(); }
};

}  // namespace zeropp
