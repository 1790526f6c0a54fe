// SPDX-License-Identifier: Apache-2.0
// Collectives of one rank and of thread ranks: bits against serial sums, for every dtype and awkward count.
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/on_device.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>

#include "mpi/collectives.hpp"

using namespace zeropp;
using namespace std::chrono_literals;

TEST_CASE("every collective, dtype and count, on 1, 2, 3, 4 and 8 ranks") {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    std::mutex mutex;
    std::set<std::uint64_t> hashes;
    run_ranks(ranks, {.limit = 5s}, [&](Comm comm) {
      CHECK(comm.size() == ranks);
      const auto hash = test::collectives(comm);
      std::lock_guard lock(mutex);
      hashes.insert(hash);
    });
    CHECK(hashes.size() == 1);
  }
}

TEST_CASE("floats are added in rank order") {
  run_ranks(3, {.limit = 5s}, [](Comm comm) {
    // (1e8 + 1) - 1e8 is 0 in float, (1e8 - 1e8) + 1 is 1
    float value[1] = {comm.rank() == 0 ? 1e8f : comm.rank() == 1 ? 1.f : -1e8f};
    comm.all_reduce(std::span<float>(value));
    CHECK(value[0] == 0.f);
  });
}

TEST_CASE("bf16 and f16 are added in float and rounded once") {
  run_ranks(4, {.limit = 5s}, [](Comm comm) {
    // In bf16 each 256 + 1 would round back to 256.
    bf16 value[1] = {bf16(comm.rank() == 0 ? 256.f : 1.f)};
    comm.all_reduce(std::span<bf16>(value));
    CHECK(float(value[0]) == float(bf16(259.f)));
    // In f16 each 2048 + 1 would round back to 2048.
    f16 half[1] = {f16(comm.rank() == 0 ? 2048.f : 1.f)};
    comm.all_reduce(std::span<f16>(half));
    CHECK(float(half[0]) == float(f16(2051.f)));
    CHECK(float(value[0]) == 260.f);
  });
}

TEST_CASE("special values: infinities, NaN, negative zero, integers that wrap") {
  run_ranks(2, {.limit = 5s}, [](Comm comm) {
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<float> data{infinity, comm.rank() ? infinity : -infinity, comm.rank() ? NAN : 1.f, -0.f};
    comm.all_reduce(std::span(data));
    CHECK(data[0] == infinity);
    CHECK(std::isnan(data[1]));
    CHECK(std::isnan(data[2]));
    CHECK(std::signbit(data[3]));
    std::int32_t most[1] = {std::numeric_limits<std::int32_t>::max()};
    comm.all_reduce(std::span<std::int32_t>(most));
    CHECK(most[0] == -2);
  });
}

TEST_CASE("more ranks than elements: the last ranks own nothing") {
  run_ranks(8, {.limit = 5s}, [](Comm comm) {
    std::vector<double> whole{1, 2, 3};
    std::vector<double> part(comm.rank() < 3 ? 1 : 0);
    comm.reduce_scatter(std::span(whole), std::span(part));
    if (comm.rank() < 3) CHECK(part[0] == 8.0 * (comm.rank() + 1));
    std::fill(whole.begin(), whole.end(), 0);
    comm.all_gather(std::span<const double>(part), std::span(whole));
    CHECK(whole == std::vector<double>{8, 16, 24});
  });
}

TEST_CASE("ten thousand rounds: no round sees the values of another") {
  for (const int ranks : {2, 3, 8}) {
    const int rounds = 20000 / ranks;
    run_ranks(ranks, {.limit = 5s}, [&](Comm comm) {
      std::vector<std::int64_t> data(5);
      int wrong = 0;
      for (int round = 0; round < rounds; ++round) {
        for (auto& value : data) value = round + comm.rank();
        if (round % 3 == 0) {
          comm.all_reduce(std::span(data));
          for (auto value : data) wrong += value != ranks * round + ranks * (ranks - 1) / 2;
        } else if (round % 3 == 1) {
          comm.broadcast(std::span(data), round % ranks);
          for (auto value : data) wrong += value != round + round % ranks;
        } else {
          comm.barrier();
        }
      }
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE("a barrier holds everybody until the last has come") {
  std::atomic<int> come{0};
  run_ranks(4, {.limit = 5s}, [&](Comm comm) {
    for (int round = 1; round <= 50; ++round) {
      if (comm.rank() == round % 4) std::this_thread::sleep_for(200us);
      come.fetch_add(1);
      comm.barrier();
      CHECK(come.load() >= 4 * round);
    }
  });
}

TEST_CASE("messages keep their order, and a rank may send to itself") {
  run_ranks(3, {.limit = 5s}, [](Comm comm) {
    const int to = (comm.rank() + 1) % 3, from = (comm.rank() + 2) % 3;
    for (std::int32_t i = 0; i < 1000; ++i) comm.send(to, std::span<const std::int32_t>(&i, 1));
    for (std::int32_t i = 0; i < 1000; ++i) {
      std::int32_t got = -1;
      comm.recv(from, std::span<std::int32_t>(&got, 1));
      REQUIRE(got == i);
    }
    const float mine = 7;
    float back = 0;
    comm.send(comm.rank(), std::span<const float>(&mine, 1));
    comm.recv(comm.rank(), std::span<float>(&back, 1));
    CHECK(back == 7);
  });
}

TEST_CASE("groups of a group work side by side, also when one of them is slow") {
  run_ranks(6, {.limit = 5s}, [](Comm comm) {
    const Comm group = comm.split(comm.rank() / 2, 0);
    if (comm.rank() / 2 == 0) std::this_thread::sleep_for(20ms);
    for (int round = 0; round < 200; ++round) {
      std::int32_t one[1] = {1};
      group.all_reduce(std::span<std::int32_t>(one));
      REQUIRE(one[0] == 2);
    }
    std::int32_t one[1] = {1};
    comm.all_reduce(std::span<std::int32_t>(one));
    CHECK(one[0] == 6);
  });
}

TEST_CASE("traffic counts what a rank sends") {
  run_ranks(4, {.limit = 5s}, [](Comm comm) {
    std::vector<float> data(10);
    comm.all_reduce(std::span(data));  // parts of 3, 3, 3, 1
    CHECK(comm.traffic().calls_of(Collective::all_reduce) == 1);
    CHECK(comm.traffic().bytes_of(Collective::all_reduce) == 2 * 4 * (comm.rank() == 3 ? 9 : 7));
    comm.broadcast(std::span(data), 1);
    CHECK(comm.traffic().bytes_of(Collective::broadcast) == (comm.rank() == 1 ? 120 : 0));
  });
}

TEST_CASE("the group outlives its owner: a communicator is a handle") {
  std::vector<Comm> comms;
  {
    ThreadGroup group{2, {.limit = 5s}};
    comms.push_back(group.comm(0));
    comms.push_back(group.comm(1));
  }
  std::thread other([&] { comms[1].barrier(); });
  comms[0].barrier();
  other.join();
  CHECK(comms[0].name() == "threads");
}

TEST_CASE("on hosts a communicator is its own host(), its device's, and its operations are over when they return") {
  run_ranks(3, {.limit = 5s}, [](Comm comm) {
    Cpu cpu;
    CHECK(comm.host().identity() == comm.identity());
    CHECK(on_device(comm, cpu).identity() == comm.identity());
    CHECK(comm.limit() == 5s);
    CHECK(comm.sum(std::int64_t{comm.rank()}) == 3);
    test::pending(comm);
  });
  test::pending(Comm{});
}

namespace {

/// A device whose operations go on after their calls, as far as a communicator sees: what was joined, in order.
class LateBackend final : public CommBackend {
 public:
  explicit LateBackend(std::vector<std::uint64_t>& joined) : joined_(joined) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  std::string_view name() const override { return "late"; }
  const Comm* host() const override { return &host_; }
  std::uint64_t enqueued() const override { return number_; }
  void join(std::uint64_t number) override { joined_.push_back(number); }
  void reduce_scatter(const Operation&, std::span<const Piece>) override { ++number_; }
  void all_gather(const Operation&, std::span<const Piece>) override { ++number_; }
  void broadcast(const Operation&, std::span<std::byte>) override { ++number_; }
  void all_to_all(const Operation&, std::span<const std::byte>, std::span<const std::int64_t>, std::span<std::byte>,
                  std::span<const std::int64_t>) override {
    ++number_;
  }
  void send(const Operation&, int, std::span<const std::byte>) override { ++number_; }
  void recv(const Operation&, int, std::span<std::byte>) override { ++number_; }
  void barrier(const Operation&) override {}
  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int>) override { return {}; }

 private:
  Comm host_;
  std::vector<std::uint64_t>& joined_;
  std::uint64_t number_ = 0;
};

struct PlansForGpus : Dry {
  static constexpr bool cuda = true;
  detail::DryComms comms{*this};
  template <class T>
  T& companion() {
    return comms;
  }
};

}  // namespace

TEST_CASE("what is pending is joined once: by wait(), by the next one in its place, at the end of its life") {
  std::vector<std::uint64_t> joined;
  const Comm comm{std::make_shared<LateBackend>(joined)};
  const Piece none[] = {{nullptr, nullptr, 0}};
  const auto block = std::make_shared<int>(1);

  auto first = comm.all_gather_async(DType::f32, none);
  CHECK(first.under_way());
  CHECK(joined.empty());
  first.hold(block);
  CHECK(block.use_count() == 2);
  first.wait();
  first.wait();
  CHECK(joined == std::vector<std::uint64_t>{1});
  CHECK(block.use_count() == 1);
  CHECK_FALSE(first.under_way());
  first.hold(block);  // over: nothing to hold it for
  CHECK(block.use_count() == 1);

  first = comm.reduce_scatter_async(DType::f32, none);
  auto second = comm.reduce_scatter_async(DType::f32, none);
  second = std::move(first);
  CHECK(joined == std::vector<std::uint64_t>{1, 3});
  { const auto moved = std::move(second); }
  CHECK(joined == std::vector<std::uint64_t>{1, 3, 2});

  comm.all_gather(DType::f32, none);  // those that return when they are ordered join themselves
  float value = 1;
  comm.all_reduce(std::span{&value, 1});
  comm.broadcast(std::span{&value, 1}, 1);
  CHECK(joined == std::vector<std::uint64_t>{1, 3, 2, 4, 6, 7});
  {
    auto before = comm.all_gather_async(DType::f32, none);
    before.hold(block);
    const auto chained = comm.all_gather_async(DType::f32, none, std::move(before));
    CHECK(joined.back() == 8);  // no stream of its own: what computes waits, and the next operation runs after that
    CHECK(block.use_count() == 2);
  }
  CHECK(joined.back() == 9);
  CHECK(block.use_count() == 1);
  CHECK(comm.host().identity() != comm.identity());
  CHECK(comm.sum(2.0) == 2.0);  // of the host's one rank, not of this group
}

TEST_CASE("a dry device that plans for GPUs holds what a GPU holds; one that plans for hosts does not") {
  PlansForGpus gpu;
  Dry host;
  const Piece none[] = {{nullptr, nullptr, 0}};
  const Comm dry = dry_comm(1, 4);
  CHECK_FALSE(on_device(dry, host).all_gather_async(DType::f32, none).under_way());
  const Comm planned = on_device(dry, gpu);
  CHECK(planned.rank() == 1);
  CHECK(planned.size() == 4);
  CHECK(planned.all_gather_async(DType::f32, none).under_way());
  CHECK(on_device(dry, gpu).identity() == planned.identity());
  CHECK(on_device(planned, gpu).identity() == planned.identity());
  CHECK_FALSE(on_device(Comm{}, gpu).all_gather_async(DType::f32, none).under_way());
}
