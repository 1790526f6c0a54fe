// SPDX-License-Identifier: Apache-2.0
// Before memory is taken, a model is held against its mesh, and the ranks of the mesh compare what they have built.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/settings.hpp>
#include <zeropp/layers/parameter.hpp>
#include <zeropp/parallel/sharding/model_comms.hpp>
#include <zeropp/parallel/sharding/model_parameters.hpp>

namespace zeropp::detail {

/// Throws ConfigError where tensor ranks of another communicator than `tensor` share the layers, or none of the layers
/// use the tensor ranks of the mesh.
inline void expect_tensor_ranks(std::span<Parameter* const> parameters, const Comm& tensor) {
  bool used = parameters.empty();
  for (auto* p : parameters) {
    if (!p->tensor_group) {  // a rule that fills the slice itself, without cut() or replicate()
      used = used || p->split() || p->sum_over_tensor;
      continue;
    }
    used = true;
    if (p->tensor_group != tensor.identity())
      throw ConfigError(text("parameter ", p->name, p->split() ? text(" is shared by ", p->slice.parts) : " is held by",
                             " tensor ranks of another communicator than the model's, which has ", tensor.size(),
                             "; give TensorParallel and Sharded the same mesh: Sharded model{mesh, device, "
                             "parallelize(mesh, layer)}"));
  }
  if (tensor.size() > 1 && !used)
    throw ConfigError(text("the mesh has ", tensor.size(),
                           " tensor ranks, and no layer of the model uses them; write "
                           "Sharded model{mesh, device, parallelize(mesh, layer)}, or leave the axis out"));
}

/// The same for the stages of a pipeline; `used` is null where no pipeline cuts the model.
inline void expect_pipeline_ranks(const Comm* used, const Comm& pipeline) {
  if (used && used->size() > 1 && used->identity() != pipeline.identity())
    throw ConfigError(text("PipelineStage has ", used->size(),
                           " stages on another communicator than the model's "
                           "pipeline, which has ",
                           pipeline.size(),
                           "; give both the same mesh: Sharded model{mesh, device, parallelize(mesh, layer)}"));
  if (pipeline.size() > 1 && (!used || used->size() == 1))
    throw ConfigError(text("the mesh has ", pipeline.size(),
                           " pipeline ranks, and the model is not cut into stages; "
                           "write Sharded model{mesh, device, parallelize(mesh, layer)}, or leave the axis out"));
}

/// Throws CommError, on all ranks of an axis, where ranks have built models that do not fit together: ranks that share
/// the state have equal layers; tensor ranks cut the same parameters; stages of a pipeline know the same model.
inline void expect_same_model(std::span<Parameter* const> parameters, std::span<const std::string> of_layers,
                              const ModelComms& comms, const std::vector<ModelParameter>& whole,
                              const SettingList& options) {
  constexpr std::string_view what = "built another model";
  SettingList here = options, shared = options, of_pipeline = options;
  for (auto* parameter : parameters) {
    auto& p = *parameter;
    auto declared =
        text(shape_text(p.whole_shape()), p.decay ? " with decay" : " without decay", ", initialised ",
             static_cast<int>(p.init.kind), " ", p.init.scale, p.tied_to.empty() ? "" : ", tied to ", p.tied_to);
    auto mine = declared + text(", here ", shape_text(p.shape));
    for (auto& range : p.slice.ranges) mine += text(" ", range.begin, "-", range.end);
    shared.push_back({"parameter " + p.name, std::move(declared)});
    here.push_back({"parameter " + p.name, std::move(mine)});
  }
  for (auto& settings : of_layers) {
    shared.push_back({"a layer with", settings});
    here.push_back({"a layer with", settings});
  }
  for (auto& p : whole) of_pipeline.push_back({"parameter " + p.name, shape_text(p.shape)});
  expect_same_settings(comms.sharding, here, "", what);
  expect_same_settings(comms.tensor, shared, "tensor ", what);
  expect_same_settings(comms.pipeline, of_pipeline, "pipeline ", what);
}

}  // namespace zeropp::detail
