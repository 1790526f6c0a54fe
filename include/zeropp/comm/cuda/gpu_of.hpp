// SPDX-License-Identifier: Apache-2.0
// Which GPU a rank takes.
//
//   launch(argc, argv, [](World& world) {
//     Cuda gpu{gpu_of(world)};                    // or gpu_of(world, GpuSharing::allowed) to try ranks on one GPU
#pragma once

#include <cstdlib>

#include <zeropp/comm/world.hpp>
#include <zeropp/device/cuda.hpp>

namespace zeropp {

enum class GpuSharing {
  refused,  ///< a GPU for each rank of a host
  allowed   ///< ranks take turns over the GPUs there are: for tests, and plans larger than the machine
};

namespace detail {

/// `ranks_here`: threads of this process, 0 where processes of the host are not counted; `devices` is what this process
/// sees; `each_its_own`: the launcher has shown each process GPUs of its own.
inline CudaOptions gpu_of(int local_rank, int ranks_here, int devices, bool each_its_own, GpuSharing sharing) {
  if (devices == 0) throw ConfigError("this machine has no GPU (or no driver); use --backend cpu");
  if (each_its_own && devices == 1) return {};
  const int ranks = ranks_here > local_rank ? ranks_here : local_rank + 1;
  if (ranks > devices && sharing == GpuSharing::refused)
    throw ConfigError(text("this host has ", devices, devices == 1 ? " GPU" : " GPUs", " and ",
                           ranks_here > local_rank ? "" : "at least ", ranks, " ranks; start ", devices,
                           devices == 1 ? " rank" : " ranks", ", or ask for ranks that share a GPU (--share-gpus)"));
  return {.ordinal = local_rank % devices, .shared = ranks > devices};
}

}  // namespace detail

/// The GPU of this rank: thread ranks and the processes of a host take one after the other by local_rank. Throws
/// ConfigError where there are more ranks than GPUs, unless sharing is asked for.
inline CudaOptions gpu_of(const World& world, GpuSharing sharing = GpuSharing::refused) {
  const bool threads = world.size == 1 || world.comm.name() == "threads";
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return detail::gpu_of(world.local_rank, threads ? world.size : 0, cuda_devices(), !threads && visible && *visible,
                        sharing);
}

}  // namespace zeropp
