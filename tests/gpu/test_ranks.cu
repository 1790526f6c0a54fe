// SPDX-License-Identifier: Apache-2.0
// Thread ranks that share one GPU, and the choice of a communicator: the bits of thread ranks on the host, for every
// collective, dtype and awkward count; order between streams; ranks that differ are named.
#include <doctest/doctest.h>

#include <chrono>
#include <thread>
#include <vector>

#include <zeropp/comm/launch.hpp>
#include <zeropp/comm/threads/threads.hpp>

#include "collectives.hpp"

using namespace zeropp;
using namespace std::chrono_literals;

namespace {

/// body(comm over GPUs, gpu) on thread ranks that share GPU 0.
template <class Body>
void on_one_gpu(int ranks, const Body& body, std::chrono::nanoseconds limit = 20s) {
  run_ranks(ranks, {.limit = limit}, [&](Comm comm) {
    Cuda gpu;
    body(on_device(comm, gpu), gpu);
  });
}

}  // namespace

TEST_CASE("every collective, dtype and count on 1, 2, 3 and 4 ranks that share a GPU: the bits of the host") {
  for (const int ranks : {1, 2, 3, 4})
    on_one_gpu(ranks, [&](const Comm& comm, Cuda& gpu) {
      CHECK(comm.size() == ranks);
      CHECK(comm.name() == (ranks == 1 ? "one GPU" : "threads on one GPU"));
      test::gpu_collectives(comm, gpu, true);
    });
}

TEST_CASE("many small pieces are few launches: more than a table holds") {
  on_one_gpu(3, [](const Comm& comm, Cuda& gpu) {
    constexpr std::int64_t pieces = 200;
    std::vector<float> values, sums;
    std::vector<std::int64_t> begins;
    for (std::int64_t p = 0; p < pieces; ++p) {
      begins.push_back(std::ssize(values));
      const auto mine = test::input_of<float>(comm.rank(), static_cast<int>(p), p % 7 * 5);
      const auto sum = test::sum_of<float>(3, static_cast<int>(p), p % 7 * 5);
      values.insert(values.end(), mine.begin(), mine.end());
      sums.insert(sums.end(), sum.begin(), sum.end());
    }
    test::OnGpu<float> data(gpu, values);
    std::vector<Piece> list;
    for (std::int64_t p = 0; p < pieces; ++p) {
      const auto count = p % 7 * 5;
      auto* whole = data.data() + begins[static_cast<std::size_t>(p)];
      list.push_back({whole, whole + part_begin(count, comm.rank(), 3), count});
    }
    comm.reduce_scatter(DType::f32, list);
    comm.all_gather(DType::f32, list);
    test::expect_same(data.values(), sums, "many pieces");
  });
}

TEST_CASE("groups of a group") {
  on_one_gpu(4, [](const Comm& comm, Cuda& gpu) { test::gpu_groups(comm, gpu, true); });
}

TEST_CASE("what computes waits for what is sent, and the other way round, however late a rank's GPU is") {
  for (const int ranks : {2, 3})
    on_one_gpu(ranks, [](const Comm& comm, Cuda& gpu) { test::gpu_order(comm, gpu, 30, true); });
}

TEST_CASE("messages that nobody waits for: their memory is free at once, and they keep their order") {
  on_one_gpu(2, [](const Comm& comm, Cuda& gpu) {
    for (int i = 0; i < 50; ++i) {
      if (comm.rank() == 0) {
        test::OnGpu<std::int32_t> data(gpu, std::vector<std::int32_t>(1000, i));
        comm.send(1, std::span<const std::int32_t>(data.span()));
        cuda_check(cudaMemsetAsync(data.data(), 0, 4000, gpu.stream()), "memset");
      } else {
        if (i % 10 == 0) test::keep_busy(gpu, 1);
        test::OnGpu<std::int32_t> data(gpu, 1000);
        comm.recv(0, data.span());
        REQUIRE(data.values() == std::vector<std::int32_t>(1000, i));
      }
    }
  });
}

TEST_CASE("ranks that call different things are named, all of them end") {
  const auto fails = [](const char* sentence, const auto& body) {
    CHECK_THROWS_WITH_AS(on_one_gpu(2, body, 5s), doctest::Contains(sentence), CommError);
  };
  fails("ranks disagree: rank 0 calls all_gather number 2 of 8 float32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 8);
    comm.all_reduce(std::span<float>{});  // numbers 0 and, as every all_reduce is two, what follows is 2
    comm.rank() == 0 ? comm.all_gather(std::span<const float>(data.part(comm)), data.span())
                     : comm.reduce_scatter(data.span(), data.part(comm));
  });
  fails("of 8 float32, rank 1 calls all_reduce number 0 of 9 float32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 8 + comm.rank());
    comm.all_reduce(data.span());
  });
  fails("of 4 float32 from rank 0, rank 1 calls broadcast number 0 of 4 int32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> floats(gpu, 4);
    test::OnGpu<std::int32_t> ints(gpu, 4);
    comm.rank() == 0 ? comm.broadcast(floats.span(), 0) : comm.broadcast(ints.span(), 0);
  });
  fails("in 2 pieces, piece 0 of 3 elements", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 8);
    const std::int64_t first = 3 + comm.rank();
    const Piece pieces[] = {
        {data.data(), data.data() + part_begin(first, comm.rank(), 2), first},
        {data.data() + first, data.data() + first + part_begin(8 - first, comm.rank(), 2), 8 - first}};
    comm.all_gather(DType::f32, pieces);
  });
  fails("calls recv of 5 float32 from rank 0, rank 0 calls send of 4 float32", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 4 + comm.rank());
    comm.rank() == 0 ? comm.send(1, std::span<const float>(data.span())) : comm.recv(0, data.span());
  });
  fails("bytes to rank 1, which expects", [](const Comm& comm, Cuda& gpu) {
    test::OnGpu<float> data(gpu, 4), out(gpu, 4 + comm.rank());
    const std::vector<std::int64_t> send{2, 2}, receive{2, 2 + comm.rank()};
    comm.all_to_all(std::span<const float>(data.span()), send, out.span(), receive);
  });
}

TEST_CASE("a rank that fails, or does not come, ends the others") {
  const auto start = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH_AS(on_one_gpu(3,
                                  [](const Comm& comm, Cuda& gpu) {
                                    test::OnGpu<float> data(gpu, 8);
                                    comm.all_reduce(data.span());
                                    if (comm.rank() == 1) throw DataError("no more data");
                                    comm.all_reduce(data.span());
                                  }),
                       doctest::Contains("rank 1: no more data"), DataError);
  CHECK(std::chrono::steady_clock::now() - start < 5s);
  CHECK_THROWS_WITH_AS(on_one_gpu(
                           2,
                           [](const Comm& comm, Cuda& gpu) {
                             test::OnGpu<float> data(gpu, 8);
                             comm.all_reduce(data.span());
                             if (comm.rank() == 1) std::this_thread::sleep_for(3s);
                             comm.all_reduce(data.span());
                           },
                           1s),
                       doctest::Contains("for rank 1, which did not come"), CommError);
}

TEST_CASE("memory of the host given to a communicator of GPUs is refused; its host() takes it") {
  on_one_gpu(2, [](const Comm& comm, Cuda& gpu) {
    std::vector<float> values(8, 1.0f);
    comm.host().all_reduce(std::span{values});
    CHECK(values[7] == 2.0f);
    CHECK(comm.sum(3) == 6);
    CHECK(on_device(comm, gpu).identity() == comm.identity());
    CHECK(on_device(comm.host(), gpu).identity() == comm.identity());
  });
  CHECK_THROWS_WITH_AS(on_one_gpu(2,
                                  [](const Comm& comm, Cuda&) {
                                    std::vector<float> values(8);
                                    comm.all_reduce(std::span{values});
                                  }),
                       doctest::Contains("was given memory of the host"), CommError);
}

TEST_CASE("which GPU a rank takes") {
  const auto takes = [](int local_rank, int ranks_here, int devices, bool each_its_own, GpuSharing sharing) {
    const auto options = detail::gpu_of(local_rank, ranks_here, devices, each_its_own, sharing);
    return std::pair{options.ordinal, options.shared};
  };
  CHECK(takes(0, 1, 1, false, GpuSharing::refused) == std::pair{0, false});
  CHECK(takes(3, 4, 8, false, GpuSharing::refused) == std::pair{3, false});
  CHECK(takes(3, 4, 2, false, GpuSharing::allowed) == std::pair{1, true});
  CHECK(takes(3, 0, 1, true, GpuSharing::refused) == std::pair{0, false});  // srun gave each process one
  CHECK_THROWS_WITH_AS(detail::gpu_of(0, 4, 2, false, GpuSharing::refused),
                       doctest::Contains("this host has 2 GPUs and 4 ranks; start 2 ranks"), ConfigError);
  CHECK_THROWS_WITH_AS(detail::gpu_of(2, 0, 2, false, GpuSharing::refused),
                       doctest::Contains("2 GPUs and at least 3 ranks"), ConfigError);
  CHECK_THROWS_WITH_AS(detail::gpu_of(0, 1, 0, false, GpuSharing::refused), doctest::Contains("no GPU"), ConfigError);
}
