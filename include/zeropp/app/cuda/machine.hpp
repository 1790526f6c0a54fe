// SPDX-License-Identifier: Apache-2.0
// The rates of the GPUs under a run, measured: the other half of machine.hpp. For files that nvcc compiles.
#pragma once

#include <string>

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/attention.hpp>
#include <zeropp/base/format.hpp>
#include <zeropp/app/machine.hpp>

namespace zeropp {

/// The ceiling of utilisation: bf16 products of a size that fills a GPU, all ranks together, in FLOP a second. The
/// products take 112 MiB meanwhile. A collective.
template <CudaDevice D>
double peak_rate(const Comm& comm, D& gpu) {
  return gemm_rate<bf16>(comm, gpu, 4096, 2048, 10);
}

/// The GPU of this rank, its driver, the libraries of this program, and the rate of products. A collective.
template <CudaDevice D>
std::string describe_gpu(const Comm& comm, D& gpu) {
  const auto version = [](int number) { return text(number / 1000, ".", number % 1000 / 10); };
  int driver = 0, runtime = 0;
  cuda_check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  cuda_check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
#ifdef ZEROPP_NCCL
  constexpr auto nccl = "NCCL";
#else
  constexpr auto nccl = "no NCCL";
#endif
  return text(cuda_devices(), " GPUs, here ", gpu.properties().name, ", ",
              bytes_text(static_cast<double>(gpu.properties().memory)), "; CUDA ", version(runtime),
              " on a driver for ", version(driver), "; built with ", nccl,
              kernels::make_attention_provider ? ", cuDNN" : ", no cuDNN", "\n", "bf16 products ",
              fixed(peak_rate(comm, gpu) / 1e12, 1), " TFLOP/s, all ranks together");
}

}  // namespace zeropp
