// SPDX-License-Identifier: Apache-2.0
#include "run.hpp"

template zeropp::SimulatedStep zeropp::run<zeropp::Fp32>(const SimulationFile&, Trace*);
