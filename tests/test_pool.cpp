// SPDX-License-Identifier: Apache-2.0
// The pool: recorded programs, packed plans, replays; what is refused.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <set>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/device/tensor.hpp>

using namespace zeropp;

namespace {

/// Takes and frees blocks in an order drawn from `seed`; each block is filled and checked before it is freed.
template <class D>
std::vector<std::byte*> random_program(D& device, unsigned seed, const char* name) {
  std::mt19937 random(seed);
  struct Held {
    Storage storage;
    std::size_t bytes;
    unsigned char mark;
  };
  std::vector<Held> held;
  std::vector<std::byte*> places;
  Pool::Program program(device.pool(), name);
  for (unsigned i = 0; i < 200; ++i) {
    if (held.empty() || random() % 3) {
      const std::size_t bytes = random() % 2000;
      held.push_back({device.pool().take_temporary(bytes, Purpose::activations), bytes, static_cast<unsigned char>(i)});
      places.push_back(held.back().storage.get());
      if (!D::dry) std::memset(static_cast<void*>(held.back().storage.get()), held.back().mark, bytes);
    } else {
      const auto at = random() % held.size();
      for (std::size_t b = 0; !D::dry && b < held[at].bytes; ++b)
        REQUIRE(static_cast<unsigned char>(held[at].storage.get()[b]) == held[at].mark);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  held.clear();
  program.finish();
  return places;
}

}  // namespace

TEST_CASE("a replayed program finds its blocks at the same addresses, and none overlaps another") {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Cpu cpu;
    random_program(cpu, seed, "train");
    const auto second = random_program(cpu, seed, "train"), third = random_program(cpu, seed, "train");
    CHECK(second == third);
    CHECK(cpu.pool().allocated() == cpu.pool().planned());
    CHECK(cpu.pool().arena() >= cpu.pool().peak().total());
    Dry dry;
    random_program(dry, seed, "train");
    CHECK(dry.pool().planned() == cpu.pool().planned());
    CHECK(dry.pool().peak() == cpu.pool().peak());
  }
}

TEST_CASE("programs share one arena, as large as the largest") {
  Cpu cpu;
  auto run = [&](const char* name, std::int64_t elements) {
    Pool::Program program(cpu.pool(), name);
    Tensor<float, 1>{cpu.pool(), {elements}};
    program.finish();
  };
  run("small", 16);
  CHECK(cpu.pool().arena() == 64);
  run("large", 1024);
  CHECK(cpu.pool().arena() == 4096);
  run("small", 16);
  CHECK(cpu.pool().allocated() == 4096);
}

TEST_CASE("a replay that asks for something else is refused, and the pool stays usable") {
  Cpu cpu;
  auto run = [&](std::vector<std::int64_t> elements) {
    Pool::Program program(cpu.pool(), "train");
    for (auto n : elements) Tensor<float, 1>{cpu.pool(), {n}};
    program.finish();
  };
  run({10, 20});
  CHECK_THROWS_WITH_AS(run({10, 21}), doctest::Contains("request 1 of the program 'train' asks for 84 B"), MemoryError);
  CHECK_THROWS_WITH_AS(run({10, 20, 30}), doctest::Contains("made no such request"), MemoryError);
  CHECK_THROWS_WITH_AS(run({10}), doctest::Contains("made 1 requests, its first run 2"), MemoryError);
  run({10, 20});
}

TEST_CASE("an exception in the first run leaves no plan behind") {
  Cpu cpu;
  try {
    Pool::Program program(cpu.pool(), "train");
    Tensor<float, 1>{cpu.pool(), {5}};
    throw 1;
  } catch (int) {
  }
  Pool::Program program(cpu.pool(), "train");
  Tensor<float, 1>{cpu.pool(), {7}};
  program.finish();
  CHECK(cpu.pool().arena() == 64);
}

TEST_CASE("a block that outlives its program stays valid through the next runs") {
  Cpu cpu;
  Tensor<float, 1> kept[3];
  for (auto& tensor : kept) {
    Pool::Program program(cpu.pool(), "train");
    Tensor<float, 1> scratch{cpu.pool(), {100}};
    tensor = {cpu.pool(), {100}};
    std::fill_n(tensor.data(), 100, static_cast<float>(&tensor - kept));
    std::fill_n(scratch.data(), 100, -1.0f);
    scratch = {};
    program.finish();
  }
  for (int i = 0; i < 3; ++i)
    for (float value : kept[i].span()) REQUIRE(value == static_cast<float>(i));
}

TEST_CASE("a limit is kept, and the refusal says what is used for what") {
  Cpu cpu{{.memory_limit = 1000}};
  auto weights = cpu.pool().take_persistent(600, Purpose::weights);
  CHECK_THROWS_WITH_AS(
      cpu.pool().take_temporary(500, Purpose::activations),
      doctest::Contains("no memory for 500 B of activations: 600 B are in use of a limit of 1000 B (kept: "
                        "weights 600 B"),
      MemoryError);
  weights.reset();
  CHECK(cpu.pool().allocated() == 0);
  cpu.pool().take_temporary(500, Purpose::activations);
}

TEST_CASE("an arena for which there is no memory is refused, and every program can be run again") {
  Cpu cpu{{.memory_limit = 300}};  // five blocks fit, but not their arena, where each begins on 64 B
  const auto run = [&](const char* name, int blocks) {
    Pool::Program program(cpu.pool(), name);
    std::vector<Storage> held;
    for (int i = 0; i < blocks; ++i) {
      held.push_back(cpu.pool().take_temporary(10, Purpose::activations));
      REQUIRE(held.back());
      std::memset(static_cast<void*>(held.back().get()), i, 10);
    }
    held.clear();
    program.finish();
  };
  for (int time = 0; time < 2; ++time) {
    run("small", 2);
    CHECK(cpu.pool().arena() == 128);
    run("small", 2);
    CHECK_THROWS_WITH_AS(run("large", 5), doctest::Contains("no memory for 320 B"), MemoryError);
    CHECK(cpu.pool().allocated() == 0);
  }
}

TEST_CASE("storage may outlive its device") {
  Tensor<float, 1> tensor;
  {
    Cpu cpu;
    tensor = {cpu.pool(), {8}};
  }
  tensor.data()[7] = 1;
  CHECK(tensor.unique());
}

TEST_CASE("tensors: slices, views, shapes that do not fit") {
  Cpu cpu;
  Tensor<float, 3> x{cpu.pool(), {2, 3, 4}};
  CHECK(x.rows() == 6);
  CHECK(x.slice(1, 2).data() == x.data() + 12);
  CHECK(x.slice(1, 1).size() == 0);
  CHECK(x.reshape<2>({6, 4}).extent(-1) == 4);
  CHECK_THROWS_WITH_AS(x.reshape<2>({5, 4}), doctest::Contains("[2, 3, 4] cannot be seen as [5, 4]"), ConfigError);
  CHECK_THROWS_AS((Tensor<float, 2>{cpu.pool(), {std::int64_t{1} << 40, std::int64_t{1} << 40}}), ConfigError);
  CHECK_THROWS_AS((Tensor<float, 1>{cpu.pool(), {-1}}), ConfigError);
  CHECK(Tensor<float, 2>{cpu.pool(), {0, 5}}.size() == 0);
}

TEST_CASE("workers cut by grain, rethrow, and cover every index once") {
  for (int threads : {1, 2, 3}) {
    Workers workers(threads);
    for (std::int64_t count : {0, 1, 7, 1000}) {
      std::vector<int> seen(static_cast<std::size_t>(count));
      std::atomic<bool> cut_by_grain{true};
      workers.for_each(count, 7, [&](std::int64_t begin, std::int64_t end) {
        if (begin % 7 || (end != count && end - begin != 7)) cut_by_grain = false;
        for (; begin < end; ++begin) ++seen[static_cast<std::size_t>(begin)];
      });
      CHECK(cut_by_grain);
      CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
    }
    CHECK_THROWS_AS(workers.for_each(100, 1,
                                     [](std::int64_t begin, std::int64_t) {
                                       if (begin == 50) throw Error("here");
                                     }),
                    Error);
    int sum = 0;
    workers.for_each(10, 100, [&](std::int64_t begin, std::int64_t end) { sum += static_cast<int>(end - begin); });
    CHECK(sum == 10);
  }
  CHECK_THROWS_AS(Workers(0), ConfigError);
}
