// SPDX-License-Identifier: Apache-2.0
#include <zeropp/device/cuda.hpp>

#include "gpu.hpp"

namespace mini_gpt::gpu {
Plan plan(const Settings& s, const Mesh& mesh) { return plan_of<Bf16, DryCuda>(s, mesh); }
}  // namespace mini_gpt::gpu
