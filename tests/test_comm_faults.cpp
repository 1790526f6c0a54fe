// SPDX-License-Identifier: Apache-2.0
// Thread ranks that fail, differ, come late or not at all: every rank ends in time, and the sentence names the cause.
#include <ctime>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/threads/threads.hpp>

using namespace zeropp;
using namespace std::chrono_literals;

// The wall clock of this program jumps a day back or forth every time somebody reads it. Nothing here may notice.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  static std::atomic<int> calls{0};
  const auto result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (clock == CLOCK_REALTIME) time->tv_sec += 86400 * (calls.fetch_add(1) % 2 ? 1 : -1);
  return result;
}

namespace {

using Clock = std::chrono::steady_clock;

struct Outcome {
  std::string first;               // what run_ranks threw
  std::vector<std::string> ranks;  // what each rank saw, empty if nothing
  double seconds = 0;
};

template <class Error = CommError, class Body>
Outcome outcome(int ranks, std::chrono::nanoseconds limit, const Body& body) {
  Outcome out;
  out.ranks.resize(static_cast<std::size_t>(ranks));
  const auto start = Clock::now();
  try {
    run_ranks(ranks, {.limit = limit}, [&](Comm comm) {
      try {
        body(comm);
      } catch (const std::exception& e) {
        out.ranks[static_cast<std::size_t>(comm.rank())] = e.what();
        throw;
      }
    });
    FAIL("no rank failed");
  } catch (const Error& e) {
    out.first = e.what();
  }
  out.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return out;
}

bool contains(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }

std::vector<float> floats(std::size_t count) { return std::vector<float>(count, 1.f); }

}  // namespace

TEST_CASE("an exception in one rank ends all, whatever they wait in") {
  using Wait = void (*)(const Comm&);
  const Wait waits[] = {
      [](const Comm& comm) { comm.barrier(); },
      [](const Comm& comm) {
        auto data = floats(100);
        comm.all_reduce(std::span(data));
      },
      [](const Comm& comm) {
        auto data = floats(10);
        comm.recv((comm.rank() + 1) % comm.size(), std::span(data));
      },
      [](const Comm& comm) { comm.split(0, 0); },
      [](const Comm& comm) {
        const int members[] = {0, 1, 2, 3};
        comm.subset(members);
      },
  };
  for (const auto wait : waits)
    for (const int ranks : {2, 4, 8}) {
      const auto out = outcome<DataError>(ranks, 60s, [&](const Comm& comm) {
        comm.barrier();
        if (comm.rank() == 1) throw DataError("train.bin ends at byte 17");
        if (wait == waits[4] && ranks == 2) return comm.barrier();
        if (wait == waits[4] && comm.rank() > 3) return comm.barrier();
        wait(comm);
      });
      CHECK(out.first == "rank 1: train.bin ends at byte 17");
      CHECK(out.seconds < 1);
      for (int rank = 0; rank < ranks; ++rank)
        if (rank != 1) {
          CAPTURE(out.ranks[static_cast<std::size_t>(rank)]);
          CHECK(contains(out.ranks[static_cast<std::size_t>(rank)],
                         "ended because rank 1 failed: train.bin ends at byte 17"));
        }
    }
}

TEST_CASE("the kind of the first error, its exit code and its place are kept") {
  try {
    run_ranks(2, {.limit = 5s}, [](Comm comm) {
      if (comm.rank() == 1) throw MemoryError("asked for 7 bytes");
      comm.barrier();
    });
    FAIL("accepted");
  } catch (const MemoryError& e) {
    CHECK(std::string(e.what()) == "rank 1: asked for 7 bytes");
    CHECK(e.exit_code() == ExitCode::memory);
    CHECK(contains(e.where().file, "test_comm_faults.cpp"));
  }
  CHECK_THROWS_WITH_AS(run_ranks(2,
                                 [](Comm comm) {
                                   if (comm.rank() == 0) throw std::bad_alloc();
                                   comm.barrier();
                                 }),
                       "rank 0: out of host memory", MemoryError);
  CHECK_THROWS_WITH_AS(run_ranks(2,
                                 [](Comm comm) {
                                   if (comm.rank() == 0) throw std::runtime_error("odd");
                                   comm.barrier();
                                 }),
                       "rank 0: odd", Error);
  CHECK_THROWS_AS(run_ranks(2,
                            [](Comm comm) {
                              if (comm.rank() == 0) throw 7;
                              comm.barrier();
                            }),
                  int);
}

TEST_CASE("a failure ends groups of groups, and a failure there ends the world") {
  for (const int failing : {0, 5}) {
    const auto out = outcome<Error>(6, 60s, [&](const Comm& comm) {
      const Comm group = comm.split(comm.rank() / 3, 0);
      if (comm.rank() == failing) throw Error("stop");
      if (comm.rank() == 1) group.barrier();
      if (comm.rank() == 2) comm.barrier();
      auto data = floats(3);
      if (comm.rank() == 4) group.recv(0, std::span(data));
      group.all_reduce(std::span(data));
    });
    CHECK(out.first == text("rank ", failing, ": stop"));
    CHECK(out.seconds < 1);
    CHECK(contains(out.ranks[1], text("ended because rank ", failing, " failed: stop")));
    CHECK(contains(out.ranks[4], text("ended because rank ", failing, " failed: stop")));
  }
}

TEST_CASE("after a failure every later operation ends too") {
  run_ranks(1, [](Comm comm) { comm.barrier(); });
  int ended = 0;
  CHECK_THROWS_AS(run_ranks(2, {.limit = 5s},
                            [&](Comm comm) {
                              if (comm.rank() == 1) throw Error("gone");
                              const auto data = floats(1);
                              for (int i = 0; i < 4; ++i) try {
                                  i % 2 ? comm.send(1, std::span<const float>(data)) : comm.barrier();
                                } catch (const CommError& e) {
                                  ended += contains(e.what(), "rank 1 failed: gone");
                                }
                            }),
                  Error);
  CHECK(ended >= 3);  // a send may have gone before the failure
}

TEST_CASE("a rank that does not come is named, with the operation, within the limit") {
  const auto out = outcome(4, 200ms, [](const Comm& comm) {
    comm.barrier();
    if (comm.rank() == 2) std::this_thread::sleep_for(700ms);
    auto data = floats(64);
    comm.all_reduce(std::span(data));
  });
  CHECK(contains(out.first, "waited 0.2 s in all_reduce number 1 of 64 float32 for rank 2, which did not come"));
  CHECK(out.seconds < 1.5);
  for (const int rank : {0, 1, 3}) {
    CHECK(contains(out.ranks[static_cast<std::size_t>(rank)], "all_reduce number 1 of 64 float32"));
    CHECK(contains(out.ranks[static_cast<std::size_t>(rank)], "for rank 2, which did not come"));
  }
  CHECK(contains(out.ranks[2], "ended because"));  // it comes at last, and must not pass
}

TEST_CASE("start-up: threads that never join are listed") {
  ThreadGroup group{5, {.limit = 100ms}};
  std::vector<std::thread> threads;
  std::vector<std::string> said(2);
  for (const int rank : {0, 3})
    threads.emplace_back([&, rank] {
      try {
        group.comm(rank).barrier();
      } catch (const CommError& e) {
        said[rank == 3] = e.what();
      }
    });
  for (auto& thread : threads) thread.join();
  for (auto& sentence : said) CHECK(contains(sentence, "in barrier number 0 for ranks 1, 2 and 4, which did not come"));
}

TEST_CASE("a rank that returns while others wait for it is named at once") {
  auto out = outcome(3, 60s, [](const Comm& comm) {
    if (comm.rank() == 2) return;
    comm.barrier();
  });
  CHECK(contains(out.first, "calls barrier number 0, but rank 2 ended without it"));
  CHECK(out.seconds < 1);
  out = outcome(2, 60s, [](const Comm& comm) {
    auto data = floats(4);
    if (comm.rank() == 0) return comm.send(1, std::span<const float>(data));
    comm.recv(0, std::span(data));  // sent before the end: fine
    comm.recv(0, std::span(data));
  });
  CHECK(out.first == "rank 1 calls recv of 4 float32 from rank 0, which ended without sending it");
  CHECK(out.seconds < 1);
}

TEST_CASE("ranks that wait for each other are named with what they wait in") {
  const auto out = outcome(2, 200ms, [](const Comm& comm) {
    auto data = floats(4);
    if (comm.rank() == 0)
      comm.recv(1, std::span(data));
    else
      comm.all_reduce(std::span(data));
  });
  CHECK(contains(out.first, "recv of 4 float32 from rank 1"));
  CHECK(contains(out.first, "all_reduce number 0 of 4 float32"));
  CHECK(out.seconds < 1);
}

TEST_CASE("different collectives, order, dtype, count, root: all ranks name both calls, at once") {
  struct Case {
    void (*first)(const Comm&);
    void (*second)(const Comm&);
    const char* sentence;
  };
  const Case cases[] = {
      {[](const Comm& comm) {
         auto whole = floats(64), part = floats(16);
         comm.all_gather(std::span<const float>(part), std::span(whole));
       },
       [](const Comm& comm) {
         auto data = floats(64);
         comm.all_reduce(std::span(data));
       },
       "rank 0 calls all_gather number 3 of 64 float32, rank 2 calls all_reduce number 3 of 64 float32"},
      {[](const Comm& comm) {
         auto data = floats(64);
         comm.all_reduce(std::span(data));
       },
       [](const Comm& comm) {
         std::vector<double> data(64);
         comm.all_reduce(std::span(data));
       },
       "rank 0 calls all_reduce number 3 of 64 float32, rank 2 calls all_reduce number 3 of 64 float64"},
      {[](const Comm& comm) {
         auto data = floats(64);
         comm.all_reduce(std::span(data));
       },
       [](const Comm& comm) {
         auto data = floats(65);
         comm.all_reduce(std::span(data));
       },
       "rank 0 calls all_reduce number 3 of 64 float32, rank 2 calls all_reduce number 3 of 65 float32"},
      {[](const Comm& comm) {
         auto data = floats(8);
         comm.broadcast(std::span(data), 1);
       },
       [](const Comm& comm) {
         auto data = floats(8);
         comm.broadcast(std::span(data), 3);
       },
       "rank 0 calls broadcast number 3 of 8 float32 from rank 1, rank 2 calls broadcast number 3 of 8 float32 from "
       "rank 3"},
      {[](const Comm& comm) { comm.barrier(); },
       [](const Comm& comm) {
         auto data = floats(8);
         comm.broadcast(std::span(data), 3);
       },
       "rank 0 calls barrier number 3, rank 2 calls broadcast number 3 of 8 float32 from rank 3"},
      {[](const Comm& comm) {
         auto a = floats(8), b = floats(4);
         const Piece pieces[] = {{a.data(), a.data() + 2 * comm.rank(), 8}, {b.data(), b.data() + comm.rank(), 4}};
         comm.reduce_scatter(DType::f32, pieces);
       },
       [](const Comm& comm) {
         auto a = floats(4), b = floats(8);
         const Piece pieces[] = {{a.data(), a.data() + comm.rank(), 4}, {b.data(), b.data() + 2 * comm.rank(), 8}};
         comm.reduce_scatter(DType::f32, pieces);
       },
       "rank 0 calls reduce_scatter number 3 of 12 float32 in 2 pieces, piece 0 of 8 elements, rank 2 calls "
       "reduce_scatter number 3 of 12 float32 in 2 pieces, piece 0 of 4 elements"},
      {[](const Comm& comm) {
         auto a = floats(8);
         const Piece pieces[] = {{a.data(), a.data() + 2 * comm.rank(), 8}};
         comm.all_gather(DType::f32, pieces);
       },
       [](const Comm& comm) {
         auto a = floats(8);
         const Piece pieces[] = {{a.data(), a.data() + 2 * comm.rank(), 8}, {nullptr, nullptr, 0}};
         comm.all_gather(DType::f32, pieces);
       },
       "rank 0 calls all_gather number 3 of 8 float32 in 1 pieces, rank 2 calls all_gather number 3 of 8 float32 in 2 "
       "pieces, piece 1 of 0 elements"},
  };
  for (const auto& one : cases) {
    CAPTURE(one.sentence);
    const auto out = outcome(4, 60s, [&](const Comm& comm) {
      for (int i = 0; i < 3; ++i) comm.barrier();
      comm.rank() == 2 ? one.second(comm) : one.first(comm);
    });
    CHECK(contains(out.first, text("ranks disagree: ", one.sentence, "; all ranks of a group must")));
    CHECK(out.seconds < 1);
    for (const auto& sentence : out.ranks) CHECK(sentence == out.first);
  }
}

TEST_CASE("all_to_all: counts that do not fit are named for the pair") {
  const auto out = outcome(3, 60s, [](const Comm& comm) {
    const auto in = floats(3);
    auto back = floats(comm.rank() == 2 ? 4 : 3);
    const std::vector<std::int64_t> send{1, 1, 1}, receive{1, comm.rank() == 2 ? 2 : 1, 1};
    comm.all_to_all(std::span<const float>(in), send, std::span(back), receive);
  });
  CHECK(out.first == "all_to_all number 0 of float32: rank 1 sends 4 bytes to rank 2, which expects 8");
  for (const auto& sentence : out.ranks) CHECK(sentence == out.first);
}

TEST_CASE("send and recv of different size or type are named") {
  auto out = outcome(2, 60s, [](const Comm& comm) {
    auto data = floats(comm.rank() ? 8 : 4);
    comm.rank() ? comm.recv(0, std::span(data)) : comm.send(1, std::span<const float>(data));
  });
  CHECK(contains(out.first, "rank 1 calls recv of 8 float32 from rank 0, rank 0 calls send of 4 float32 to rank 1"));
  out = outcome(2, 60s, [](const Comm& comm) {
    auto data = floats(4);
    std::vector<std::int32_t> integers(4);
    comm.rank() ? comm.recv(0, std::span(integers)) : comm.send(1, std::span<const float>(data));
  });
  CHECK(contains(out.first, "rank 1 calls recv of 4 int32 from rank 0, rank 0 calls send of 4 float32 to rank 1"));
}

TEST_CASE("in a group of a group the sentences keep the numbers of the world") {
  const auto out = outcome(6, 60s, [](const Comm& comm) {
    const Comm group = comm.split(comm.rank() % 2, 0);
    auto data = floats(comm.rank() == 5 ? 2 : 1);
    if (comm.rank() % 2) group.all_reduce(std::span(data));
    comm.barrier();
  });
  CHECK(contains(out.first, "rank 1 calls all_reduce number 0 of 1 float32, rank 5 calls all_reduce number 0 of 2"));
  const auto late = outcome(4, 100ms, [](const Comm& comm) {
    const Comm group = comm.split(comm.rank() % 2, 0);
    if (comm.rank() == 3) std::this_thread::sleep_for(300ms);
    if (comm.rank() % 2) group.barrier();
  });
  CHECK(contains(late.first, "rank 1 waited 0.1 s in barrier number 0 in the group of ranks 1 and 3 for rank 3"));
}

TEST_CASE("two ranks with one number, numbers out of range, groups of nobody") {
  ThreadGroup group{2};
  group.comm(1);
  CHECK_THROWS_WITH_AS(group.comm(1), "two threads ask to be rank 1 of 2; give each a number of its own", CommError);
  CHECK_THROWS_WITH_AS(group.comm(2), "rank 2 asked of a group of 2 ranks", CommError);
  CHECK_THROWS_WITH_AS(group.comm(-1), "rank -1 asked of a group of 2 ranks", CommError);
  CHECK_THROWS_WITH_AS(ThreadGroup{0}, "a group needs at least 1 rank, got 0", ConfigError);
  CHECK_THROWS_WITH_AS((ThreadGroup{2, {.limit = 0s}}),
                       "the limit on waiting for other ranks must be above 0 s, got 0 s", ConfigError);
  run_ranks(2, {.limit = std::chrono::nanoseconds::max()}, [](Comm comm) { comm.barrier(); });
}

TEST_CASE("a part across its place in the whole is refused before anything is overwritten") {
  const auto out = outcome(2, 60s, [](const Comm& comm) {
    auto data = floats(8);
    comm.reduce_scatter(std::span(data), std::span(data).subspan(comm.rank() == 1 ? 1 : 0, 4));
  });
  CHECK(
      contains(out.first, "the part of rank 1 overlaps the whole of 8 elements, but does not begin at its element 4"));
}

TEST_CASE("200 failures at random moments: the cause is always the one that was thrown") {
  const auto start = Clock::now();
  for (int run = 0; run < 200; ++run) {
    const int ranks = 2 + run % 4, failing = run % ranks, at = run * 7 % 40;
    const auto out = outcome<DataError>(ranks, 60s, [&](const Comm& comm) {
      const Comm group = comm.split(comm.rank() % 2, 0);
      for (int i = 0;; ++i) {
        if (comm.rank() == failing && i == at) throw DataError(text("failure ", run));
        auto data = floats(1 + static_cast<std::size_t>(i % 5));
        const int next = (comm.rank() + 1) % ranks, previous = (comm.rank() + ranks - 1) % ranks;
        switch ((run + i) % 4) {
          case 0: comm.all_reduce(std::span(data)); break;
          case 1: group.all_reduce(std::span(data)); break;
          case 2: comm.send(next, std::span<const float>(data)), comm.recv(previous, std::span(data)); break;
          default: comm.broadcast(std::span(data), i % ranks);
        }
      }
    });
    CHECK(out.first == text("rank ", failing, ": failure ", run));
  }
  CHECK(std::chrono::duration<double>(Clock::now() - start).count() < 20);
}
