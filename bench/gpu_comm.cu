// SPDX-License-Identifier: Apache-2.0
// Collectives between GPUs through Comm and by raw calls of NCCL, in one run: 1 KiB to 1 GiB, for 1, 2, 4, ... as many
// GPUs as there are, a thread each. Bus bandwidth as nccl-tests defines it: what each link carries,
// bytes / time · (ranks - 1) / ranks, twice that for all_reduce. One GPU: bytes / time.
//   gpu_comm [largest bytes]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <zeropp/comm/on_device.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>

using namespace zeropp;

namespace {

enum class What { all_reduce, reduce_scatter, all_gather, broadcast };
constexpr const char* names[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast"};

/// Milliseconds a call, the median of `tries` batches of `calls`, each timed on the stream that computes.
template <class F>
double milliseconds(const Comm& host, Cuda& gpu, int tries, int calls, const F& call) {
  CudaEvent start(true), stop(true);
  for (int i = 0; i < 3; ++i) call();
  std::vector<double> times;
  for (int t = 0; t < tries; ++t) {
    gpu.synchronize();
    host.barrier();
    start.record(gpu.stream());
    for (int i = 0; i < calls; ++i) call();
    stop.record(gpu.stream());
    gpu.synchronize();
    float time = 0;
    cuda_check(cudaEventElapsedTime(&time, start.get(), stop.get()), "cudaEventElapsedTime");
    times.push_back(time / calls);
  }
  std::nth_element(times.begin(), times.begin() + tries / 2, times.end());
  return times[static_cast<std::size_t>(tries / 2)];
}

/// A collective of float32 whose whole is `count` elements.
void by_comm(const Comm& comm, What what, std::span<float> data) {
  const auto count = std::ssize(data), begin = part_begin(count, comm.rank(), comm.size()),
             end = part_begin(count, comm.rank() + 1, comm.size());
  const auto part = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  switch (what) {
    case What::all_reduce: return comm.all_reduce(data);
    case What::reduce_scatter: return comm.reduce_scatter(data, part);
    case What::all_gather: return comm.all_gather(std::span<const float>{part}, data);
    case What::broadcast: return comm.broadcast(data, 0);
  }
}

#ifdef ZEROPP_NCCL
void by_nccl(ncclComm_t comm, int rank, int size, What what, std::span<float> data, cudaStream_t stream) {
  const auto each = data.size() / static_cast<std::size_t>(size);
  float* part = data.data() + each * static_cast<std::size_t>(rank);
  const auto check = [](ncclResult_t result) { detail::nccl_check(result, "raw call"); };
  switch (what) {
    case What::all_reduce:
      return check(ncclAllReduce(data.data(), data.data(), data.size(), ncclFloat, ncclSum, comm, stream));
    case What::reduce_scatter:
      return check(ncclReduceScatter(data.data(), part, each, ncclFloat, ncclSum, comm, stream));
    case What::all_gather: return check(ncclAllGather(part, data.data(), each, ncclFloat, comm, stream));
    case What::broadcast:
      return check(ncclBroadcast(data.data(), data.data(), data.size(), ncclFloat, 0, comm, stream));
  }
}
#endif

void run(const Comm& host, Cuda& gpu, const Comm& comm, std::size_t largest) {
  const int rank = host.rank(), size = host.size();
  if (rank == 0)
    std::printf("\n%d x %s, %s\n%-15s %12s %12s %10s %12s %10s %7s\n", size, gpu.properties().name.c_str(),
                std::string(comm.name()).c_str(), "collective", "bytes", "ours us", "GB/s", "raw us", "GB/s", "ratio");
#ifdef ZEROPP_NCCL
  const bool raw = comm.name() == "NCCL";
  ncclUniqueId id{};
  ncclComm_t raw_comm = nullptr;
  if (raw) {
    if (rank == 0) id = detail::NcclCommunicator::make_id();
    host.broadcast(std::as_writable_bytes(std::span<char>{id.internal}), 0);
    detail::nccl_check(ncclCommInitRank(&raw_comm, size, id, rank), "raw communicator");
  }
#endif
  Tensor<float, 1> memory(gpu.pool(), {static_cast<std::int64_t>(largest / sizeof(float))}, Purpose::buffers);
  cuda_check(cudaMemsetAsync(memory.data(), 0, memory.span().size_bytes(), gpu.stream()), "cudaMemsetAsync");
  for (const What what : {What::all_reduce, What::reduce_scatter, What::all_gather, What::broadcast}) {
    if (size == 1 && what != What::reduce_scatter && what != What::all_gather) continue;
    for (std::size_t bytes = 1024; bytes <= largest; bytes *= 4) {
      const auto data = memory.span().first(bytes / sizeof(float));
      const int calls = bytes <= (std::size_t{1} << 20) ? 50 : bytes <= (std::size_t{64} << 20) ? 10 : 3;
      const double ours = milliseconds(host, gpu, 5, calls, [&] { by_comm(comm, what, data); });
      double theirs = 0;
#ifdef ZEROPP_NCCL
      if (raw)
        theirs = milliseconds(host, gpu, 5, calls, [&] { by_nccl(raw_comm, rank, size, what, data, gpu.stream()); });
#endif
      const double links =
          size == 1 || what == What::broadcast ? 1 : (what == What::all_reduce ? 2.0 : 1.0) * (size - 1) / size;
      const auto rate = [&](double time) { return time > 0 ? links * static_cast<double>(bytes) / time / 1e6 : 0.0; };
      if (rank == 0)
        std::printf("%-15s %12zu %12.1f %10.1f %12.1f %10.1f %7.3f\n", names[static_cast<int>(what)], bytes, 1e3 * ours,
                    rate(ours), 1e3 * theirs, rate(theirs), theirs > 0 ? theirs / ours : 0.0);
    }
  }
#ifdef ZEROPP_NCCL
  if (raw_comm) ncclCommDestroy(raw_comm);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const int gpus = cuda_devices();
  if (gpus == 0) {
    std::puts("skipped: this machine has no GPU");
    return 77;
  }
  try {
    const std::size_t largest = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : std::size_t{1} << 30;
#ifdef ZEROPP_NCCL
    {
      Cuda gpu;
      run(Comm{}, gpu, nccl_comm(Comm{}, gpu, true), std::min(largest, std::size_t{1} << 28));
    }
#endif
    for (int ranks = 2; ranks <= gpus; ranks *= 2)
      run_ranks(ranks, [&](Comm host) {
        Cuda gpu{{.ordinal = host.rank()}};
        run(host, gpu, on_device(host, gpu), largest);
      });
    run_ranks(2, [&](Comm host) {  // two ranks that share one
      Cuda gpu;
      run(host, gpu, on_device(host, gpu), std::min(largest, std::size_t{1} << 28));
    });
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
