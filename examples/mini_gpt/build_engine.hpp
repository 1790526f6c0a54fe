// SPDX-License-Identifier: Apache-2.0
// Puts the engine together from zeropp's parts: the one file of mini_gpt that nvcc compiles for GPUs.
#pragma once

#include <utility>

#include <zeropp/parallel/sharding/sharded_engine.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

#include "engine.hpp"

namespace mini_gpt {

/// The rank's part of the model.
inline Parallel<Gpt> model_on(const Mesh& mesh, const Settings& s) {
  return parallelize(mesh, Gpt{s.model}, s.parallel());
}

template <class P, class D>
Engine<P, D> build_engine(const Settings& s, const Mesh& mesh, D& device) {
  using Model = ShardedModelOf<ShardedEngine<Parallel<Gpt>, P, D>>;
  Engine<P, D> engine{std::make_unique<Model>(mesh, device, model_on(mesh, s), s.stage(), s.sharded()), nullptr};
  engine.adam = std::make_unique<FusedAdam<ShardedState<P, D>>>(engine.model->state(), s.adam());
  return engine;
}

}  // namespace mini_gpt
