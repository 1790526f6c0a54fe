// SPDX-License-Identifier: Apache-2.0
// The types of a simulation, chosen at run time. One .cpp a precision instantiates them.
#pragma once

#include <zeropp/parallel/tensor_parallel.hpp>
#include <zeropp/train/simulate_config.hpp>

#include "../../examples/mini_gpt/model.hpp"

namespace zeropp {

template <class P>
SimulatedStep run(const SimulationFile& s, Trace* trace) {
  const mini_gpt::ModelConfig config{.n_layer = s.model.layers,
                                     .n_head = s.model.heads,
                                     .n_embd = s.model.width,
                                     .block_size = s.model.context,
                                     .vocabulary = s.model.vocabulary};
  const auto with = [&]<class Block, Stage S>() {
    using Shared = TensorParallel<mini_gpt::Gpt<Block>>;
    return simulate<S, P>(
        s.simulation,
        [&](const Mesh& mesh) {
          const TensorOptions tensor{.comm = mesh.tensor(), .sequence = s.sequence_parallel};
          const PipelineOptions pipeline{.comm = mesh.pipeline(),
                                         .schedule = s.schedule,
                                         .chunks = s.chunks,
                                         .width = s.model.width,
                                         .parts_of_context = s.sequence_parallel ? mesh.size(Axis::tensor) : 1};
          return PipelineStage<Shared>{pipeline, Shared{tensor, mini_gpt::Gpt<Block>{config}}};
        },
        trace);
  };
  const auto with_stage = [&]<class Block>() {
    switch (s.stage) {
      case 0: return with.template operator()<Block, Stage::none>();
      case 1: return with.template operator()<Block, Stage::optimizer_states>();
      case 2: return with.template operator()<Block, Stage::gradients>();
      default: return with.template operator()<Block, Stage::parameters>();
    }
  };
  return s.recompute ? with_stage.template operator()<Recompute<mini_gpt::Block>>()
                     : with_stage.template operator()<mini_gpt::Block>();
}

extern template SimulatedStep run<Fp32>(const SimulationFile&, Trace*);
extern template SimulatedStep run<Bf16>(const SimulationFile&, Trace*);

}  // namespace zeropp
