// SPDX-License-Identifier: Apache-2.0
// AdamW over the flat shards of a model: FusedElementwise of the rule AdamW, under the name that users know.
//
//   FusedAdam adam{model, {.weight_decay = 0.1f}};
#pragma once

#include <vector>

#include <zeropp/train/optimizers/adamw.hpp>
#include <zeropp/train/optimizers/fused_elementwise.hpp>

namespace zeropp {

using AdamOptions = AdamW;

/// Over a Sharded, or over the ShardedState of any: see FusedElementwise.
template <class Model>
class FusedAdam final : public FusedElementwise<AdamW, Model> {
 public:
  explicit FusedAdam(Model& model, AdamOptions options = {}, std::vector<ParameterGroup> groups = {})
      : FusedElementwise<AdamW, Model>(model, options, std::move(groups)) {}
};

/// One type for all models of a precision and device.
template <class Model>
FusedAdam(Model&, AdamOptions = {}, std::vector<ParameterGroup> = {})
    -> FusedAdam<ShardedState<typename Model::Precision, typename Model::Device>>;

}  // namespace zeropp
