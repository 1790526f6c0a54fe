// SPDX-License-Identifier: Apache-2.0
#include "../../examples/mini_gpt/plan.hpp"

template zeropp::SimulatedStep mini_gpt::simulate_of<zeropp::Bf16>(const Settings&, const Simulation&, Trace*);
