// SPDX-License-Identifier: Apache-2.0
// The grid of ranks: coordinates, groups along each axis, orders, and refusals that name valid values.
#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/threads/threads.hpp>

using namespace zeropp;

namespace {
constexpr Axis all_axes[] = {Axis::data, Axis::tensor, Axis::pipeline, Axis::context};

std::string refusal(int ranks, const MeshOptions& options) {
  try {
    Mesh{dry_comm(0, ranks), options};
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "accepted";
}
bool contains(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }
}  // namespace

TEST_CASE("default order: tensor ranks are neighbours, pipeline ranks farthest apart") {
  const MeshOptions options{.data = 3, .tensor = 2, .pipeline = 2, .context = 2};
  for (int rank = 0; rank < 24; ++rank) {
    const Mesh mesh{dry_comm(rank, 24), options};
    CHECK(mesh.coordinate(Axis::tensor) == rank % 2);
    CHECK(mesh.coordinate(Axis::context) == rank / 2 % 2);
    CHECK(mesh.coordinate(Axis::data) == rank / 4 % 3);
    CHECK(mesh.coordinate(Axis::pipeline) == rank / 12);
    for (const Axis axis : all_axes) {
      CHECK(mesh.comm(axis).size() == mesh.size(axis));
      CHECK(mesh.comm(axis).rank() == mesh.coordinate(axis));
    }
  }
}

TEST_CASE("any order: places are a bijection") {
  std::array<Axis, mesh_axes> order{Axis::data, Axis::tensor, Axis::pipeline, Axis::context};
  int orders = 0;
  do {
    std::set<std::vector<int>> places;
    for (int rank = 0; rank < 24; ++rank) {
      const Mesh mesh{dry_comm(rank, 24), {.data = 3, .tensor = 2, .pipeline = 4, .context = 1, .order = order}};
      std::vector<int> place;
      for (const Axis axis : all_axes) place.push_back(mesh.coordinate(axis));
      places.insert(place);
      CHECK(mesh.coordinate(order[0]) == rank % mesh.size(order[0]));
    }
    CHECK(places.size() == 24);
    ++orders;
  } while (std::next_permutation(order.begin(), order.end()));
  CHECK(orders == 24);
}

TEST_CASE("data takes what is left") {
  CHECK(Mesh{dry_comm(0, 12)}.size(Axis::data) == 12);
  const Mesh mesh{dry_comm(5, 12), {.tensor = 2, .pipeline = 3}};
  CHECK(mesh.size(Axis::data) == 2);
  CHECK(mesh.describe() == "12 ranks = 2 data x 2 tensor x 3 pipeline x 1 context");
  CHECK(Mesh{}.describe() == "1 rank = 1 data x 1 tensor x 1 pipeline x 1 context");
  CHECK(Mesh{}.data().size() == 1);
}

TEST_CASE("threads: sums along an axis reach the ranks that share the other coordinates") {
  run_ranks(8, {.limit = std::chrono::seconds(5)}, [](Comm world) {
    const Mesh mesh{world, {.data = 2, .tensor = 2, .pipeline = 2}};
    for (const Axis axis : all_axes) {
      // one bit a rank, so that the sum names the set of ranks
      std::int32_t who[1] = {1 << world.rank()};
      mesh.comm(axis).all_reduce(std::span<std::int32_t>(who));
      std::int32_t expected = 0;
      for (int rank = 0; rank < 8; ++rank) {
        const Mesh other{dry_comm(rank, 8), {.data = 2, .tensor = 2, .pipeline = 2}};
        bool shares = true;
        for (const Axis a : all_axes) shares &= a == axis || other.coordinate(a) == mesh.coordinate(a);
        if (shares) expected |= 1 << rank;
      }
      CHECK(who[0] == expected);
    }
    // Two meshes in one program, of other shapes.
    const Mesh flat{world, {.data = 1, .tensor = 8}};
    CHECK(flat.tensor().rank() == world.rank());
    std::int32_t one[1] = {1};
    flat.tensor().all_reduce(std::span<std::int32_t>(one));
    CHECK(one[0] == 8);
  });
}

TEST_CASE("wrong shapes are refused with the values that would do") {
  auto sentence = refusal(8, {.data = 3, .tensor = 2});
  CHECK(contains(sentence, "3 data x 2 tensor x 1 pipeline x 1 context do not fill 8 ranks"));
  CHECK(contains(sentence, "data = 4"));
  CHECK(contains(sentence, "tensor = 1, 2, 4, 8 with data = 0"));
  sentence = refusal(8, {.tensor = 3});
  CHECK(contains(sentence, "3 tensor x 1 pipeline x 1 context do not fill 8 ranks"));
  CHECK(contains(sentence, "tensor = 1, 2, 4, 8 with data = 0"));
  CHECK(!contains(sentence, "pipeline ="));
  CHECK(contains(refusal(8, {.tensor = 3, .pipeline = 5}), "choose sizes whose product is 8"));
  CHECK(contains(refusal(8, {.tensor = 0}), "the tensor axis needs at least 1 rank, got 0"));
  CHECK(contains(refusal(8, {.data = -2}), "the data axis needs at least 1 rank, got -2; 0 takes what is left"));
  CHECK(contains(refusal(8, {.tensor = 1 << 30, .pipeline = 1 << 30, .context = 1 << 30}), "does not fit in 63 bits"));
  CHECK(contains(refusal(2, {.order = {Axis::data, Axis::data, Axis::tensor, Axis::context}}),
                 "the order names the data axis twice"));
}

TEST_CASE("threads: ranks that ask for different meshes end with both named") {
  try {
    run_ranks(4, {.limit = std::chrono::milliseconds(300)}, [](Comm world) {
      const Mesh mesh{world, {.tensor = world.rank() < 3 ? 2 : 4}};
    });
    FAIL("was accepted");
  } catch (const CommError& e) {
    CHECK(contains(e.what(), "subset of"));
    CHECK(contains(e.what(), "did not come"));
  }
}
