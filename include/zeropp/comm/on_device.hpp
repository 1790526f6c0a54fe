// SPDX-License-Identifier: Apache-2.0
// From the communicator that launch gives, which moves host memory, to the one that moves a device's memory.
//
//   Comm comm = on_device(world.comm, gpu);   // NCCL, or threads that share a GPU; on the host world.comm itself
//   comm.all_reduce(gradients);               // memory of the GPU
//   comm.host().sum(loss);                    // memory of the host
#pragma once

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/dry.hpp>
#include <zeropp/device/device.hpp>

#ifdef ZEROPP_CUDA
#include <zeropp/comm/cuda/on_device.hpp>
#endif

namespace zeropp {

/// The communicator over the ranks of `comm` that moves memory of `device`: made at the first call, a collective, and
/// kept by the device; later calls look it up. On the host that is `comm` itself. On a dry device that plans for GPUs
/// it moves nothing. Throws CommError where GPUs cannot work together.
template <Device D>
Comm on_device(const Comm& comm, D& device) {
  if constexpr (requires { requires D::cuda && !D::dry; }) {
#if defined(ZEROPP_CUDA) && defined(__CUDACC__)
    return comm.host().identity() == comm.identity() ? device.template companion<detail::GpuComms>().of(comm) : comm;
#else
    static_assert(D::dry,
                  "zeropp: ranks of GPUs are compiled by nvcc: instantiate engines on Cuda in a .cu file of a "
                  "target that links zeropp::cuda");
#endif
  } else if constexpr (requires { requires D::cuda; }) {
    return device.template companion<detail::DryComms>().of(comm);
  } else {
    static_cast<void>(device);
    return comm;
  }
}

}  // namespace zeropp
