// SPDX-License-Identifier: Apache-2.0
// Puts the engine together from zeropp's parts: the one file of mini_gpt that nvcc compiles for GPUs.
#pragma once

#include <utility>

#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

#include "engine.hpp"

namespace mini_gpt {

/// Calls f.template operator()<Stage>() for the run's stage.
template <class F>
auto with_stage(const Settings& s, F f) {
  switch (s.zero) {
    case 0: return f.template operator()<Stage::none>();
    case 1: return f.template operator()<Stage::optimizer_states>();
    case 2: return f.template operator()<Stage::gradients>();
    default: return f.template operator()<Stage::parameters>();
  }
}

/// The rank's part of the model.
inline Parallel<Gpt> model_on(const Mesh& mesh, const Settings& s) {
  return parallelize(mesh, Gpt{s.model}, s.parallel(s.model.n_embd));
}

template <class P, class D>
Engine<P, D> build_engine(const Settings& s, const Mesh& mesh, D& device) {
  return with_stage(s, [&]<Stage S>() {
    using Model = ShardedModelOf<Sharded<Parallel<Gpt>, S, P, D>>;
    Engine<P, D> engine{std::make_unique<Model>(mesh, device, model_on(mesh, s), s.sharded()), nullptr};
    engine.adam = std::make_unique<FusedAdam<ShardedState<P, D>>>(engine.model->state(), s.adam());
    return engine;
  });
}

}  // namespace mini_gpt
