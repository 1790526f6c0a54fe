// SPDX-License-Identifier: Apache-2.0
#include "run.hpp"

template zeropp::SimulatedStep zeropp::run<zeropp::Bf16>(const SimulationFile&, Trace*);
