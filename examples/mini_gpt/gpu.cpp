// SPDX-License-Identifier: Apache-2.0
#include "gpu_precisions.hpp"

namespace mini_gpt::gpu {

int count() { return cuda_devices(); }
std::string precisions() { return compiled; }

std::string room() {
  const auto gpu = CudaProperties::here();
  return text(bytes_text(static_cast<double>(gpu.memory)), " on ", gpu.name,
              count() ? "" : ", as there is no GPU here");
}

int train(const Settings& s, const World& world, const Data& data) {
  return with_compiled(s.precision, [&]<class P>() { return train_in<P>(s, world, data); });
}

Plan plan(const Settings& s, const Mesh& mesh) {
  return with_compiled(s.precision, [&]<class P>() { return plan_in<P>(s, mesh); });
}

std::string describe(const Settings& s, const World& world) {
  return with_compiled(s.precision, [&]<class P>() { return describe_in<P>(s, world); });
}

}  // namespace mini_gpt::gpu
