// SPDX-License-Identifier: Apache-2.0
// Ranks with a GPU each, joined by NCCL. on_device(comm, gpu) chooses it by itself; here it is by name.
#pragma once

#include <zeropp/comm/cuda/nccl_backend.hpp>

namespace zeropp {

/// The communicator over the ranks of `comm` (threads, MPI) that moves memory of their GPUs by NCCL, a communicator of
/// NCCL's even for one rank. A collective; `device` must outlive it. With `one_process` all ranks are threads of this
/// process. Throws CommError where NCCL refuses, as it does two ranks on one GPU.
inline Comm nccl_comm(const Comm& comm, Cuda& device, bool one_process) {
  return Comm{std::make_shared<detail::NcclBackend>(comm, device, one_process)};
}

}  // namespace zeropp
