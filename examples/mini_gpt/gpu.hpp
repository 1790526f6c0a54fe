// SPDX-License-Identifier: Apache-2.0
// mini_gpt on NVIDIA GPUs: gpu.cpp and, for each precision, the engine in a file of nvcc and its loop in another; or
// where it is built without CUDA, no_gpu.cpp.
#pragma once

#include "plan.hpp"
#include "train.hpp"

namespace mini_gpt::gpu {

/// That this process sees; 0 without a driver, -1 without CUDA in the program.
int count();
/// That this program was compiled in for GPUs: "bf16;fp16".
std::string precisions();
/// "79.1 GiB on NVIDIA H100 80GB HBM3"
std::string room();
Plan plan(const Settings&, const Mesh&);
int train(const Settings&, const World&, const Data&);
/// The lines of --doctor about it. A collective.
std::string describe(const Settings&, const World&);

}  // namespace mini_gpt::gpu
