// SPDX-License-Identifier: Apache-2.0
// The device Cuda by itself: blocks of a program repeat their addresses, copies come back, a limit is a sentence,
// faults that kernels note are thrown where the host waits.
#include <doctest/doctest.h>

#include <numeric>
#include <string>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>

using namespace zeropp;

namespace {
__global__ void twice(float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= 2;
}
__global__ void complain(CudaFaults* faults) {
  faults->value = 70000, faults->place = 3, faults->limit = 50257;
  __threadfence_system();
  faults->kind = CudaFaults::token;
}
}  // namespace

TEST_CASE("copies and kernels run in order") {
  Cuda gpu;
  Tensor<float, 1> x(gpu.pool(), {1000});
  std::vector<float> host(1000);
  std::iota(host.begin(), host.end(), 0.0f);
  gpu.upload(x.data(), host.data(), 4000);
  gpu.run({.name = "twice"}, [&](cudaStream_t stream) { twice<<<4, 256, 0, stream>>>(x.data(), 1000); });
  std::vector<float> back(1000);
  gpu.download(back.data(), x.data(), 4000);
  for (int i = 0; i < 1000; ++i) REQUIRE(back[static_cast<std::size_t>(i)] == 2.0f * static_cast<float>(i));
}

TEST_CASE("a program's blocks have the same addresses every time, on the GPU too") {
  Cuda gpu;
  std::vector<const void*> first;
  for (int run = 0; run < 3; ++run) {
    Pool::Program program(gpu.pool(), "step");
    std::vector<const void*> places;
    Tensor<float, 1> a(gpu.pool(), {100000});
    places.push_back(a.data());
    {
      Tensor<float, 1> b(gpu.pool(), {5000});
      places.push_back(b.data());
    }
    Tensor<float, 1> c(gpu.pool(), {5000});
    places.push_back(c.data());
    a = {};
    c = {};
    program.finish();
    if (run == 1) first = places;
    if (run == 2) CHECK(places == first);
  }
}

TEST_CASE("what does not fit is refused in a sentence, by a limit and by the GPU") {
  Cuda small{{.memory_limit = 1 << 20}};
  CHECK_THROWS_AS(small.pool().take_persistent(2 << 20, Purpose::weights), MemoryError);
  Cuda gpu;
  CHECK_THROWS_AS(gpu.pool().take_persistent(std::size_t{1} << 45, Purpose::weights), MemoryError);
  CHECK_NOTHROW(gpu.pool().take_persistent(1 << 20, Purpose::weights));  // and the GPU is still usable
}

TEST_CASE("a GPU that is not there is refused") {
  CHECK_THROWS_WITH_AS(Cuda{{.ordinal = 99}}, doctest::Contains("GPU 99 is asked for, this machine has"), CudaError);
}

TEST_CASE("what a kernel finds wrong is thrown where the host waits, once") {
  Cuda gpu;
  gpu.run({.name = "complain"}, [&](cudaStream_t stream) { complain<<<1, 1, 0, stream>>>(gpu.faults()); });
  CHECK_THROWS_WITH_AS(gpu.synchronize(), doctest::Contains("token 70000 at place 3"), DataError);
  CHECK_NOTHROW(gpu.synchronize());
}
