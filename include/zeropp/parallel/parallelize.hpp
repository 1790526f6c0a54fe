// SPDX-License-Identifier: Apache-2.0
// How a model is laid over a mesh, in one place: the layers shared by tensor ranks, then cut into stages of a pipeline;
// `Sharded` partitions what is left of it over data ranks. One type for every mesh: where an axis has one rank its
// wrapper computes the bits of the layer inside, and sends nothing.
//
//   const Mesh mesh{world.comm, {.tensor = 2, .pipeline = 2}};
//   Sharded<Parallel<Gpt>, Stage::gradients> model{mesh, device, parallelize(mesh, Gpt{config})};
#pragma once

#include <cstdint>
#include <utility>

#include <zeropp/comm/mesh.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>

namespace zeropp {

struct ParallelOptions {
  PipelineKind schedule = PipelineKind::one_forward_one_backward;
  int chunks = 1;                  ///< parts of the model on each pipeline rank
  bool sequence_parallel = false;  ///< tensor ranks share the sequence between split products
  std::int64_t width = 0;  ///< C of what blocks hand on, [B, T, C]; 0: as wide as the layer in front of them says
};

/// The part of L on one rank of a mesh.
template <class L>
using Parallel = PipelineStage<TensorParallel<L>>;

/// Throws ConfigError for sizes that the mesh does not divide.
template <class L>
Parallel<L> parallelize(const Mesh& mesh, L layer, const ParallelOptions& o = {}) {
  return {{.comm = mesh.pipeline(),
           .schedule = o.schedule,
           .chunks = o.chunks,
           .width = o.width,
           .sequence_shards = o.sequence_parallel ? mesh.size(Axis::tensor) : 1},
          {{.comm = mesh.tensor(), .sequence_parallel = o.sequence_parallel}, std::move(layer)}};
}

}  // namespace zeropp
