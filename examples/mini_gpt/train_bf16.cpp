// SPDX-License-Identifier: Apache-2.0
#include "plan.hpp"
#include "train.hpp"

namespace mini_gpt {
template Plan plan_of<Bf16, Dry>(const Settings&, const Mesh&);
template SimulatedStep simulate_of<Bf16>(const Settings&, const Simulation&, Trace*);
template int train<Bf16>(const Settings&, const World&, const Data&, Cpu&, const Ceiling&);
}  // namespace mini_gpt
