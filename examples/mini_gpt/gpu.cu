// SPDX-License-Identifier: Apache-2.0
#include <zeropp/train/cuda/machine.hpp>

#include "gpu_precisions.hpp"

namespace mini_gpt::gpu {

namespace {
Cuda device_of(const Settings& s, const World& world) {
  return Cuda{gpu_of(world, s.share_gpus ? GpuSharing::allowed : GpuSharing::refused)};
}
}  // namespace

int count() { return cuda_devices(); }
std::string precisions() { return compiled; }

std::string room() {
  const auto gpu = CudaProperties::here();
  return text(bytes_text(static_cast<double>(gpu.memory)), " on ", gpu.name,
              count() ? "" : ", as there is no GPU here");
}

int train(const Settings& s, const World& world, const Data& data) {
  Cuda device = device_of(s, world);
  const Ceiling ceiling{peak_rate(world.comm, device), static_cast<double>(device.properties().memory)};
  return with_compiled(s.precision, [&]<class P>() { return train_in<P>(s, world, data, device, ceiling); });
}

Plan plan(const Settings& s, const Mesh& mesh) {
  return with_compiled(s.precision, [&]<class P>() { return plan_in<P>(s, mesh); });
}

std::string describe(const Settings& s, const World& world) {
  Cuda device = device_of(s, world);
  return describe_gpu(world.comm, device);
}

}  // namespace mini_gpt::gpu
