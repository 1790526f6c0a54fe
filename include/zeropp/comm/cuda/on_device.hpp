// SPDX-License-Identifier: Apache-2.0
// Which communicator serves the GPUs of a group: NCCL where each rank has one of its own; threads that read each
// other's memory where they share one, or without NCCL; copies for one rank.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/cuda/thread_gpu.hpp>
#include <zeropp/device/cuda.hpp>
#ifdef ZEROPP_NCCL
#include <zeropp/comm/cuda/nccl.hpp>
#endif

namespace zeropp::detail {

/// Drawn once. Process ids are not enough: each container counts its own.
inline std::uint64_t this_process() {
  static const std::uint64_t number = [] {
    std::random_device device;
    return static_cast<std::uint64_t>(device()) << 32 ^ device() ^ static_cast<std::uint64_t>(getpid()) << 16;
  }();
  return number;
}

/// Where a rank sits.
struct GpuSeat {
  std::uint64_t host = 0;
  std::uint64_t process = 0;   ///< a number that no other process has, on any host
  std::array<char, 16> gpu{};  ///< its UUID: ordinals differ between processes
  std::int64_t ordinal = 0;
  std::int64_t shared = 0;  ///< with ranks that need not be of this group

  static GpuSeat of(const Cuda& device) {
    GpuSeat seat;
    char name[256] = {};
    gethostname(name, sizeof name - 1);
    seat.host = hash_of(std::string_view(name));
    seat.process = this_process();
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, device.ordinal()), "cudaGetDeviceProperties");
    std::memcpy(seat.gpu.data(), properties.uuid.bytes, seat.gpu.size());
    seat.ordinal = device.ordinal();
    seat.shared = device.shared();
    return seat;
  }
  bool same_process(const GpuSeat& other) const { return process == other.process; }
  bool same_gpu(const GpuSeat& other) const { return host == other.host && gpu == other.gpu; }
};

/// The seats of all ranks. A collective over host memory.
inline std::vector<GpuSeat> gpu_seats(const Comm& host, const Cuda& device) {
  const auto mine = GpuSeat::of(device);
  std::vector<GpuSeat> seats(static_cast<std::size_t>(host.size()));
  host.all_gather(std::as_bytes(std::span<const GpuSeat>{&mine, 1}), std::as_writable_bytes(std::span{seats}));
  return seats;
}

/// Two ranks that share a GPU, if there are.
inline std::pair<int, int> sharing_a_gpu(const std::vector<GpuSeat>& seats) {
  for (int a = 0; a < static_cast<int>(seats.size()); ++a)
    for (int b = a + 1; b < static_cast<int>(seats.size()); ++b)
      if (seats[static_cast<std::size_t>(a)].same_gpu(seats[static_cast<std::size_t>(b)])) return {a, b};
  return {-1, -1};
}

/// Lets this rank's GPU read the others' of its process. False if one of them is out of reach.
inline bool reach_peers(const std::vector<GpuSeat>& seats, const Cuda& device) {
  bool all = true;
  for (const auto& seat : seats) {
    if (seat.process != this_process() || seat.ordinal == device.ordinal()) continue;
    int possible = 0;
    cuda_check(cudaDeviceCanAccessPeer(&possible, device.ordinal(), static_cast<int>(seat.ordinal)),
               "cudaDeviceCanAccessPeer");
    all &= possible != 0;
    if (!possible) continue;
    const auto result = cudaDeviceEnablePeerAccess(static_cast<int>(seat.ordinal), 0);
    if (result == cudaErrorPeerAccessAlreadyEnabled)
      static_cast<void>(cudaGetLastError());
    else
      cuda_check(result, "cudaDeviceEnablePeerAccess");
  }
  return all;
}

#ifdef __CUDACC__
/// A collective over `host`.
inline std::shared_ptr<CommBackend> gpu_backend(const Comm& host, Cuda& device) {
  cuda_check(cudaSetDevice(device.ordinal()), "cudaSetDevice");
  if (host.size() == 1) return std::make_shared<OneGpuBackend>(host, device);
  const auto seats = gpu_seats(host, device);
  const bool one_process =
      std::all_of(seats.begin(), seats.end(), [&](const GpuSeat& seat) { return seat.same_process(seats[0]); });
  const auto [first, second] = sharing_a_gpu(seats);
  // Ranks that share a GPU may not wait in kernels for ranks elsewhere, as NCCL's do: what frees memory on a GPU waits
  // for all kernels there, those of the other rank too, and rings of that never end.
  const bool shared =
      first >= 0 || std::any_of(seats.begin(), seats.end(), [](const GpuSeat& seat) { return seat.shared != 0; });
  const bool reach = reach_peers(seats, device);
#ifdef ZEROPP_NCCL
  if (!shared) return std::make_shared<NcclBackend>(host, device, one_process);
#endif
  if (!one_process)
    throw CommError(
        shared ? text(first >= 0 ? text("ranks ", host.in_world(first), " and ", host.in_world(second)) : "ranks",
                      " are on one GPU; only threads of one process can share it: start as many processes as there are "
                      "GPUs, or one process with --ranks N")
               : std::string("ranks of several processes need NCCL, and this program was built without it; link "
                             "zeropp::nccl, or start one process with --ranks N"));
  if (!reach)
    throw CommError(text("the GPU of rank ", host.in_world(host.rank()),
                         " cannot read the memory of another rank's; "
                         "link zeropp::nccl with a GPU for each rank, or use one GPU"));
  const bool all_on_one =
      std::all_of(seats.begin(), seats.end(), [&](const GpuSeat& seat) { return seat.same_gpu(seats[0]); });
  return std::make_shared<ThreadGpuBackend>(host, device, all_on_one);
}

/// The communicators of a device, by the host's that they were made from.
class GpuComms {
 public:
  explicit GpuComms(Cuda& device) : device_(device) {}
  const Comm& of(const Comm& host) {
    for (const auto& [from, made] : made_)
      if (from.identity() == host.identity()) return made;
    const auto& made = made_.emplace_back(host, Comm{gpu_backend(host, device_)}).second;
    made.label(host.label());
    made.record(host.recorder());
    return made;
  }

 private:
  Cuda& device_;
  std::vector<std::pair<Comm, Comm>> made_;
};
#endif

}  // namespace zeropp::detail
