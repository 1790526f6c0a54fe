// SPDX-License-Identifier: Apache-2.0
// Ranks joined by NCCL, as many as there are GPUs (up to 8): collectives, order, groups; ranks that differ, fail or
// do not come are named within the limit. With one GPU: a communicator of one rank, the exchange of its id, refusals.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include <zeropp/comm/launch.hpp>
#include <zeropp/comm/threads/threads.hpp>

#include "collectives.hpp"

using namespace zeropp;
using namespace std::chrono_literals;

#ifdef ZEROPP_NCCL
namespace {

int gpus() { return std::min(cuda_devices(), 8); }
bool one_gpu() {
  if (gpus() == 1) MESSAGE("left out: this machine has one GPU");
  return gpus() == 1;
}

/// body(comm over GPUs, gpu) on thread ranks with a GPU each.
template <class Body>
void on_gpus(int ranks, const Body& body, std::chrono::nanoseconds limit = 60s) {
  run_ranks(ranks, {.limit = limit}, [&](Comm comm) {
    Cuda gpu{{.ordinal = comm.rank()}};
    body(on_device(comm, gpu), gpu);
  });
}

template <class F>
double seconds(const F& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST_CASE("one rank: NCCL gives what copies give, and multicast is off") {
  Cuda gpu;
  const Comm comm = nccl_comm(Comm{}, gpu, true);
  CHECK(comm.name() == "NCCL");
  CHECK(std::string(std::getenv("NCCL_NVLS_ENABLE")) == "0");
  test::gpu_collectives(comm, gpu, false);
  test::gpu_order(comm, gpu, 6, true);
  const Piece piece[] = {{nullptr, nullptr, 0}};
  const auto pending = comm.all_gather_async(DType::f32, piece);
  CHECK(pending.under_way());
}

TEST_CASE("NCCL does not sum 16-bit integers, and says so") {
  Cuda gpu;
  const Comm comm = nccl_comm(Comm{}, gpu, true);
  test::OnGpu<std::int16_t> data(gpu, 8), part(gpu, 8);
  CHECK_THROWS_WITH_AS(comm.reduce_scatter(data.span(), part.span()), doctest::Contains("does not sum int16"),
                       CommError);
  CHECK_NOTHROW(comm.all_gather(std::span<const std::int16_t>(part.span()), data.span()));
}

TEST_CASE("long computing before an operation does not count against its limit") {
  Cuda gpu;
  struct Impatient final : CommBackend {
    int rank() const override { return 0; }
    int size() const override { return 1; }
    std::string_view name() const override { return "impatient"; }
    std::chrono::nanoseconds limit() const override { return 300ms; }
    void reduce_scatter(const Operation&, std::span<const Piece>) override {}
    void all_gather(const Operation&, std::span<const Piece>) override {}
    void broadcast(const Operation&, std::span<std::byte>) override {}
    void all_to_all(const Operation&, std::span<const std::byte>, std::span<const std::int64_t>, std::span<std::byte>,
                    std::span<const std::int64_t>) override {}
    void send(const Operation&, int, std::span<const std::byte>) override {}
    void recv(const Operation&, int, std::span<std::byte>) override {}
    void barrier(const Operation&) override {}
    std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int>) override { return {}; }
  };
  const Comm comm = nccl_comm(Comm{std::make_shared<Impatient>()}, gpu, false);
  test::keep_busy(gpu, 1000);
  test::OnGpu<float> data(gpu, 8), part(gpu, 8);
  comm.reduce_scatter(data.span(), part.span());
  CHECK_NOTHROW(gpu.synchronize());
}

TEST_CASE("ranks with a GPU each: every collective, dtype and count, on 2 and on all") {
  if (one_gpu()) return;
  for (const int ranks : {2, gpus()})
    on_gpus(ranks, [&](const Comm& comm, Cuda& gpu) {
      CHECK(comm.name() == "NCCL");
      CHECK(comm.size() == ranks);
      test::gpu_collectives(comm, gpu, false);
    });
}

TEST_CASE("two ranks: NCCL's sums have the bits of rank order") {
  if (one_gpu()) return;
  on_gpus(2, [](const Comm& comm, Cuda& gpu) {
    test::gpu_collectives_of<float>(comm, gpu, 100'003, 0, true);
    test::gpu_collectives_of<double>(comm, gpu, 4096, 0, true);
  });
}

TEST_CASE("two runs give the same bits, for whole parts and for uneven ones") {
  if (one_gpu()) return;
  std::vector<std::vector<float>> runs;
  for (int run = 0; run < 2; ++run)
    on_gpus(gpus(), [&](const Comm& comm, Cuda& gpu) {
      test::OnGpu<float> even(gpu, test::input_of<float>(comm.rank(), 1, 4'000'000)),
          uneven(gpu, test::input_of<float>(comm.rank(), 2, 1'000'003));
      comm.all_reduce(even.span());
      comm.all_reduce(uneven.span());
      if (comm.rank() != 0) return;
      runs.push_back(even.values());
      runs.push_back(uneven.values());
    });
  test::expect_same(runs[0], runs[2], "two runs, even");
  test::expect_same(runs[1], runs[3], "two runs, uneven");
}

TEST_CASE("groups of a group, and order between streams") {
  if (one_gpu()) return;
  on_gpus(gpus(), [](const Comm& comm, Cuda& gpu) {
    test::gpu_order(comm, gpu, 30, false);
    if (comm.size() >= 4) test::gpu_groups(comm, gpu, false);
  });
}

TEST_CASE("ranks that call different things are named, before their GPUs meet") {
  if (one_gpu()) return;
  const auto fails = [](const char* sentence, const auto& body) {
    CHECK(seconds([&] { CHECK_THROWS_WITH_AS(on_gpus(2, body, 10s), doctest::Contains(sentence), CommError); }) < 10);
  };
  fails("of 8 float32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 8);
    comm.rank() == 0 ? comm.all_gather(std::span<const float>(data.part(comm)), data.span())
                     : comm.reduce_scatter(data.span(), data.part(comm));
    gpu.synchronize();
  });
  fails("ranks disagree", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 8 + comm.rank());
    comm.all_reduce(data.span());
    gpu.synchronize();
  });
  fails("of 4 int32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> floats(gpu, 4);
    test::OnGpu<std::int32_t> ints(gpu, 4);
    comm.rank() == 0 ? comm.broadcast(floats.span(), 0) : comm.broadcast(ints.span(), 0);
    gpu.synchronize();
  });
}

TEST_CASE("a rank that fails ends the others at once; one that does not come is named after the limit") {
  if (one_gpu()) return;
  CHECK(seconds([] {
          CHECK_THROWS_WITH_AS(on_gpus(gpus(),
                                       [](const Comm& comm, Cuda& gpu) {
                                         test::OnGpu<float> data(gpu, 8);
                                         comm.all_reduce(data.span());
                                         if (comm.rank() == 1) throw DataError("no more data");
                                         comm.all_reduce(data.span());
                                         gpu.synchronize();
                                       }),
                               doctest::Contains("rank 1: no more data"), DataError);
        }) < 30);
  CHECK(seconds([] {
          CHECK_THROWS_WITH_AS(
              on_gpus(
                  2,
                  [](const Comm& comm, Cuda& gpu) {
                    test::OnGpu<float> data(gpu, 8);
                    comm.all_reduce(data.span());
                    gpu.synchronize();
                    if (comm.rank() == 1) std::this_thread::sleep_for(8s);
                    comm.all_reduce(data.span());
                    gpu.synchronize();
                  },
                  2s),
              doctest::Contains("rank 0 waited 2 s in all_reduce number 2 of 8 float32 (32 B) for rank "
                                "1, which did not come"),
              CommError);
        }) < 30);
}

TEST_CASE("ranks with GPUs each read each other's memory without NCCL: the bits of rank order") {
  if (one_gpu()) return;
  const int ranks = std::min(gpus(), 4);
  run_ranks(ranks, {.limit = 20s}, [&](Comm host) {
    Cuda gpu{{.ordinal = host.rank()}};
    const bool reach = detail::reach_peers(detail::gpu_seats(host, gpu), gpu);
    if (host.sum(reach ? 0 : 1)) return;
    const Comm comm{std::make_shared<detail::ThreadGpuBackend>(host, gpu, false)};
    CHECK(comm.name() == "threads with GPUs");
    test::gpu_collectives(comm, gpu, true);
    test::gpu_order(comm, gpu, 20, true);
  });
}
#else
TEST_CASE("this program was built without NCCL") { MESSAGE("left out"); }
#endif
