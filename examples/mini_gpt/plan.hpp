// SPDX-License-Identifier: Apache-2.0
// The memory of a run of mini_gpt and the time of its steps, without running it: --dry-run and --simulate.
#pragma once

#include <zeropp/train/plan.hpp>
#include <zeropp/train/simulate/simulate.hpp>

#include "build_engine.hpp"

namespace mini_gpt {

/// D: the dry device of the run.
template <class P, class D>
Plan plan_of(const Settings& s, const Mesh& mesh) {
  return plan<P, D>(mesh, model_on(mesh, s),
                    {.rows = s.rows_of(mesh.data()),
                     .sequence = s.model.block_size,
                     .micro_batches = s.micro_batches(mesh.size(Axis::data)),
                     .stage = s.stage(),
                     .sharded = s.sharded(),
                     .adam = s.adam()});
}

template <class P>
SimulatedStep simulate_of(const Settings& s, const Simulation& simulation, Trace* trace) {
  auto staged = simulation;
  staged.stage = s.stage();
  return simulate<P>(
      staged, [&](const Mesh& mesh) { return model_on(mesh, s); }, trace);
}

extern template Plan plan_of<Fp32, Dry>(const Settings&, const Mesh&);
extern template Plan plan_of<Bf16, Dry>(const Settings&, const Mesh&);
extern template Plan plan_of<Fp16, Dry>(const Settings&, const Mesh&);
extern template SimulatedStep simulate_of<Fp32>(const Settings&, const Simulation&, Trace*);
extern template SimulatedStep simulate_of<Bf16>(const Settings&, const Simulation&, Trace*);
extern template SimulatedStep simulate_of<Fp16>(const Settings&, const Simulation&, Trace*);

}  // namespace mini_gpt
