// SPDX-License-Identifier: Apache-2.0
// Simulated clusters: idle time against the formulas of the schedules, times of collectives against theirs, one rank of
// each stage against all ranks, traffic and bytes against a real run.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <mutex>
#include <string>
#include <vector>

#include <zeropp/app/config/simulate_config.hpp>
#include <zeropp/parallel/parallelize.hpp>

#include "../bench/timed_layer.hpp"
#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

/// One block a part.
SimulatedStep timed_step(PipelineKind kind, int stages, std::int64_t micro_batches, int chunks, const PassTimes& times,
                         double latency = 0) {
  return bench::timed_step(kind, stages, micro_batches, chunks, stages * chunks, times, latency);
}

using Split = TensorParallel<Plain>;
using Piped = PipelineStage<Split>;

Piped part_of(const Mesh& mesh, const TinyConfig& config) {
  return {{.comm = mesh.pipeline(), .width = config.width}, Split{{.comm = mesh.tensor()}, Plain{config}}};
}

struct Cube {
  int tensor = 2, context = 1;
  ContextAttention attention = ContextAttention::ulysses;
};
std::vector<Cube> cubes() { return {{}, {1, 2}, {1, 2, ContextAttention::ring}, {2, 2}}; }

/// Two ranks along each axis that is there, on nodes of four.
Simulation cube(const Cube& c = {}) {
  return {.kernels = DeviceTable{},
          .links = {.ranks_per_node = 4},
          .ranks = 4 * c.tensor * c.context,
          .mesh = {.data = 2, .tensor = c.tensor, .pipeline = 2, .context = c.context},
          .rows = 8,
          .sequence = 12,
          .micro_batches = 4,
          .sharded = {.bucket_bytes = 1 << 10, .context_attention = c.attention}};
}
const TinyConfig cube_model{.vocabulary = 64, .sequence = 12, .width = 24, .heads = 4, .layers = 4};

SimulatedStep simulate_cube(const Simulation& simulation, Trace* trace = nullptr) {
  return simulate<Fp32>(
      simulation, [](const Mesh& mesh) { return part_of(mesh, cube_model); }, trace);
}

}  // namespace

TEST_CASE("the idle time of each schedule is its formula's, for many stages and micro-batches") {
  const double tiny = 1e-9;
  for (int p : {1, 2, 4, 8})
    for (std::int64_t m : {1, 3, 8, 16, 24}) {
      CAPTURE(p);
      CAPTURE(m);
      const auto fill = static_cast<double>(p - 1), passes = static_cast<double>(m);
      for (auto kind : {PipelineKind::gpipe, PipelineKind::one_forward_one_backward}) {
        const auto step = timed_step(kind, p, m, 1, {1, 1, 1});
        CHECK(std::abs(step.bubble() - fill / (passes + fill)) < tiny);
        CHECK(std::abs(step.seconds - 3 * (passes + fill)) < tiny);
      }
      if (m % p == 0)
        for (int v : {2, 3}) {
          const auto step = timed_step(PipelineKind::interleaved, p, m, v, {1, 1, 1});
          CHECK(std::abs(step.bubble() - fill / (v * passes + fill)) < tiny);
        }
      if (m >= p)
        CHECK(std::abs(timed_step(PipelineKind::zb_h1, p, m, 1, {1, 1, 1}).bubble() - fill / (3 * passes + fill)) <
              tiny);
      if (m >= 2 * p)
        CHECK(std::abs(timed_step(PipelineKind::zb_v, p, m, 2, {1, 1, 1}).bubble() - fill / (6 * passes + fill)) <
              tiny);
    }
}

TEST_CASE("passes of unequal length, and links that take their time") {
  const PassTimes times{2, 3, 1.5};
  for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1}, {PipelineKind::zb_h1, 1}, {PipelineKind::zb_v, 2}}) {
    const auto line = PipelineTimeline::of(make_schedule(kind, 4, 8, chunks), times);
    CHECK(std::abs(timed_step(kind, 4, 8, chunks, times).seconds - line.end) < 1e-9);
  }
  // One micro-batch through four stages and back waits for six messages, then the norm and the loss are exchanged.
  const auto step = timed_step(PipelineKind::gpipe, 4, 1, 1, times, 0.25);
  const double exchanged = step.ranks[0].communicating;
  CHECK(std::abs(step.seconds - (4 * 6.5 + 6 * 0.25 + exchanged)) < 1e-9);
  CHECK(exchanged > 0);
}

TEST_CASE("how long collectives take") {
  const Links links{.ranks_per_node = 4, .node = {100, 0.5}, .network = {10, 2}};
  const CollectiveTimes node{links, {0, 1, 2, 3}};
  CHECK(node.part(400) == doctest::Approx(2 * 0.5 + 300.0 / 100));  // doubling: fewer messages, as much bandwidth
  CHECK(node.barrier() == doctest::Approx(2 * 0.5));
  CHECK(node.broadcast(1) == doctest::Approx(2 * (0.5 + 0.01)));
  // Two ranks on each of two nodes: a ring leaves a node by two ports
  const CollectiveTimes across{links, {0, 1, 4, 5}};
  CHECK(across.part(40000) == doctest::Approx(3 * 2 + 30000.0 / 20));
  CHECK(across.part(4) == doctest::Approx(2 * 2 + 3.0 / 10));
  // One rank a node: doubling again
  const CollectiveTimes spread{links, {0, 4, 8, 12}};
  CHECK(spread.part(40000) == doctest::Approx(2 * 2 + 30000.0 / 10));
  CHECK(spread.all_to_all(300) == doctest::Approx(3 * 2 + 30));
  CHECK(CollectiveTimes(links, {7}).part(1000) == 0);
}

TEST_CASE("one rank of each stage stands for all of them, with context ranks too") {
  for (auto& mesh : cubes()) {
    auto simulation = cube(mesh);
    DeviceTable table;
    table.launch = 0;  // shards of a unit differ in how often Adam is launched: for runs with weight decay and without
    simulation.kernels = table;
    const auto some = simulate_cube(simulation);
    simulation.every_rank = true;
    const auto all = simulate_cube(simulation);
    CAPTURE(some.mesh);
    const int of_stage = simulation.ranks / 2;
    // In a ring ranks see as many keys, but some by half of their queries: their kernels move a few bytes more or less.
    const double same = mesh.attention == ContextAttention::ring ? 1e-4 : 1e-9;
    REQUIRE(some.ranks.size() == 2);
    REQUIRE(static_cast<int>(all.ranks.size()) == simulation.ranks);
    CHECK(some.seconds == doctest::Approx(all.seconds).epsilon(same));
    CHECK(some.bubble() == doctest::Approx(all.bubble()).epsilon(same));
    CHECK(some.parameters() == all.parameters());
    for (auto& one : some.ranks)
      for (auto& other : all.ranks)
        if (one.rank / of_stage == other.rank / of_stage) {
          CHECK(one.seconds == doctest::Approx(other.seconds).epsilon(same));
          CHECK(one.kept == other.kept);
          CHECK(one.peak == other.peak);
        }
  }
}

TEST_CASE("traffic and bytes are those of a real run") {
  for (auto& shape : cubes()) {
    const auto simulation = cube(shape);
    const auto step = simulate_cube(simulation);
    CAPTURE(step.mesh);
    std::mutex mutex;
    run_ranks(simulation.ranks, {.limit = std::chrono::seconds(60)}, [&](Comm world) {
      Cpu device;
      const Mesh mesh{world, simulation.mesh};
      Sharded<Piped, Stage::gradients> model{mesh, device, part_of(mesh, cube_model), simulation.sharded};
      FusedAdam adam{model};
      auto batch = Batch::on(device, 4, 12);
      batch.labels_in_step = 8 * 12;
      std::fill_n(batch.tokens.data(), batch.tokens.size(), 1);
      std::fill_n(batch.labels.data(), batch.labels.size(), 1);
      std::array<Traffic, mesh_axes> before;
      for (int axis = 0; axis < mesh_axes; ++axis)
        before[static_cast<std::size_t>(axis)] = detail::traffic_along(mesh, static_cast<Axis>(axis));
      model.train(batch, {.micro_batches = 4});
      adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
      const std::lock_guard lock(mutex);
      for (auto& rank : step.ranks) {
        if (rank.rank != world.rank()) continue;
        CHECK(rank.kept == device.pool().kept());
        CHECK(rank.peak == device.pool().peak());
        for (int axis = 0; axis < mesh_axes; ++axis) {
          const auto sent = detail::operator-(detail::traffic_along(mesh, static_cast<Axis>(axis)),
                                              before[static_cast<std::size_t>(axis)]);
          CHECK(rank.traffic[static_cast<std::size_t>(axis)].bytes == sent.bytes);
          CHECK(rank.traffic[static_cast<std::size_t>(axis)].calls == sent.calls);
        }
      }
    });
  }
}

TEST_CASE("sums of gradients beside the computing take less of a step, and move as much") {
  auto simulation = cube();
  simulation.links.network = {1e6, 1e-4};  // so slow that it shows
  simulation.mesh = {.data = 4, .tensor = 1, .pipeline = 2};
  simulation.rows = 16;
  const auto apart = simulate_cube(simulation);
  simulation.links.overlap = true;
  const auto beside = simulate_cube(simulation);
  CHECK(beside.seconds < apart.seconds);
  CHECK(beside.ranks[0].computing == doctest::Approx(apart.ranks[0].computing));
  CHECK(beside.ranks[0].traffic[0].bytes == apart.ranks[0].traffic[0].bytes);
  for (auto* step : {&apart, &beside})
    for (auto& rank : step->ranks)
      CHECK(rank.computing + rank.communicating + rank.waiting == doctest::Approx(rank.seconds));
}

TEST_CASE("a simulated step is recorded as a real one is, on its own clock") {
  Trace trace;
  const auto step = simulate_cube(cube(), &trace);
  REQUIRE(trace.recorders().size() == 2);
  for (const auto* recorder : trace.recorders()) {
    double computing = 0;
    int passes = 0;
    for (auto& span : recorder->spans())
      if (span.kind == SpanKind::forward || span.kind == SpanKind::backward) {
        ++passes;
        computing += span.end - span.begin;
      }
    CHECK(passes == 8);
    CHECK(computing > 0);
    CHECK(computing < step.seconds);
  }
}

TEST_CASE("what a cluster cannot be is refused in a sentence") {
  auto wrong = cube();
  wrong.ranks = 9;
  wrong.mesh.data = 0;
  CHECK_THROWS_WITH_AS(simulate_cube(wrong), doctest::Contains("do not fill 9"), ConfigError);
  wrong = cube();
  wrong.rows = 9;
  CHECK_THROWS_WITH_AS(simulate_cube(wrong), doctest::Contains("the nearest that is: 8"), ConfigError);
  wrong = cube();
  wrong.mesh = {.data = 1, .tensor = 1, .pipeline = 8};
  CHECK_THROWS_WITH_AS(simulate_cube(wrong), doctest::Contains("needs as many blocks"), ConfigError);

  SimulatedClock clock;
  const auto comm = simulated_comm({}, clock, 4, {0}, Comm{});
  float x = 0;
  CHECK_THROWS_WITH_AS(comm.recv(1, std::span{&x, 1}), doctest::Contains("is not simulated"), CommError);
  comm.send(1, std::span<const float>{&x, 1});
  comm.recv(3, std::span{&x, 1});  // a shift around the ranks: what arrives is what was sent, at that time
  CHECK(clock.now() > 0);
}

TEST_CASE("mesh.json: what it says, and what it may not say") {
  const auto read = [](const std::string& content) { return read_simulation("mesh.json", content); };
  const auto s = read(R"({"precision": "fp32", "ranks": 64, "mesh": {"tensor": 8, "pipeline": 4},
    "device": {"flops": {"fp32": 1e12}, "achieved": {"matmul": 0.5}}, "links": {"network": {"latency": 1e-5}},
    "model": {"layers": 8, "width": 64, "context": 32}, "batch": {"rows": 16, "micro_batches": 8},
    "pipeline": {"schedule": "zb-v", "chunks": 2}, "zero_optimization": {"stage": 2}, "recompute": true})");
  CHECK(s.simulation.ranks == 64);
  CHECK(s.simulation.mesh.tensor == 8);
  CHECK(s.simulation.flops == 1e12);
  CHECK(s.simulation.links.network.latency == 1e-5);
  CHECK(s.simulation.sequence == 32);
  CHECK(s.simulation.attention_flops_per_token == 6.0 * 8 * 64 * 32);
  CHECK(s.simulation.kernels({.name = "matmul", .kind = CostKind::product, .flops = 1e12}) ==
        doctest::Approx(2).epsilon(1e-3));
  CHECK(s.schedule == PipelineKind::zb_v);
  CHECK(s.recompute);
  CHECK_THROWS_WITH_AS(read("{\n\"links\": {\"netwrk\": {}}}"),
                       doctest::Contains("line 2: unknown key \"netwrk\" in \"links\"; the nearest that exists is "
                                         "\"network\""),
                       ConfigError);
  CHECK_THROWS_WITH_AS(read(R"({"pipeline": {"schedule": "zb"}})"), doctest::Contains("there are gpipe"), ConfigError);
  const auto flops_of = [&](const std::string& flops) {
    return read(R"({"precision": "fp16", "device": {"flops": {)" + flops + "}}}").simulation.flops;
  };
  CHECK(flops_of(R"("bf16": 1e12, "fp32": 1e11)") == 1e12);
  CHECK(flops_of(R"("bf16": 1e12, "fp16": 2e12)") == 2e12);
  CHECK_THROWS_WITH_AS(read(R"({"precision": "fp8"})"), doctest::Contains("\"bf16\", \"fp16\" or \"fp32\""),
                       ConfigError);
  CHECK(read(R"({"mesh": {"context": 5}, "context_attention": "ring"})").simulation.mesh.context == 5);
  CHECK_THROWS_WITH_AS(read(R"({"mesh": {"context": 5}})"), doctest::Contains("do not divide the 12 heads"),
                       ConfigError);
  CHECK_THROWS_WITH_AS(read(R"({"ranks": 0})"), doctest::Contains("from 1 to"), ConfigError);
}
