// SPDX-License-Identifier: Apache-2.0
// The engine of a run, the model with its partitioned state and the optimizer, behind what a training loop needs of
// them. The loop sees no more than this: so it compiles once for all stages, and without nvcc for GPUs too.
#pragma once

#include <memory>

#include <zeropp/parallel/sharding/sharded_model.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>

#include "settings.hpp"

namespace mini_gpt {

template <class P, class D>
struct Engine {
  std::unique_ptr<ShardedModel<P, D>> model;
  std::unique_ptr<Optimizer<state_t<P>>> adam;  ///< gone before the model
};

/// For the run's stage and this rank's part of the model. build_engine.hpp defines it. A collective.
template <class P, class D>
Engine<P, D> build_engine(const Settings& s, const Mesh& mesh, D& device);

extern template Engine<Fp32, Cpu> build_engine(const Settings&, const Mesh&, Cpu&);
extern template Engine<Bf16, Cpu> build_engine(const Settings&, const Mesh&, Cpu&);
extern template Engine<Fp16, Cpu> build_engine(const Settings&, const Mesh&, Cpu&);

}  // namespace mini_gpt
