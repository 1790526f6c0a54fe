// SPDX-License-Identifier: Apache-2.0
// The time of a step on a cluster, before the cluster is there: the engine itself, on the dry device with a clock.
// One rank of each pipeline stage is run, as a thread; ranks that differ in the data, tensor or context axis only have
// the same work, so they are taken to do the same at the same moment. Thousands of ranks cost as much as their stages.
//
//   const auto step = simulate<Bf16>(simulation, [&](const Mesh& mesh) {
//     return PipelineStage{..., TensorParallel{TensorOptions{.comm = mesh.tensor()}, Gpt{config}}};
//   });
//   std::puts(describe(step).c_str());
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/format.hpp>
#include <zeropp/base/trace.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/simulated/simulated.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/device_table.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/parallel/sharding/sharded_engine.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

namespace zeropp {

struct Simulation {
  KernelTime kernels = DeviceTable{};
  double flops = DeviceTable{}.flops;                ///< a second and rank, for utilisation
  double memory_bytes = DeviceTable{}.memory_bytes;  ///< of a rank; 0: not compared
  Links links = {};
  int ranks = 1;
  MeshOptions mesh = {};
  bool every_rank = false;  ///< run them all, not one of each stage: to check what symmetry gives, on a few ranks
  std::int64_t rows = 1, sequence = 1;  ///< of a step, over all ranks; tokens of a row
  std::int64_t micro_batches = 1;
  double attention_flops_per_token =
      0;  ///< of the model, forward and backward: 6 · layers · width · sequence if causal
  Stage stage = Stage::gradients;
  ShardedOptions sharded = {};
  AdamOptions adam = {};
};

/// A rank that was run.
struct SimulatedRank {
  int rank = 0;                                          ///< of the cluster
  double seconds = 0;                                    ///< of its step
  double computing = 0, communicating = 0, waiting = 0;  ///< together as long as the step
  std::int64_t parameters = 0;                           ///< of its stage, whole; counted on the stage's first rank
  Bytes kept, peak;                        ///< as in Plan; the packed arena may take a few percent more than the peak
  std::array<Traffic, mesh_axes> traffic;  ///< that it sent in the step, by axis
};

struct SimulatedStep {
  Simulation simulation;
  std::string mesh;                  ///< in words
  std::vector<SimulatedRank> ranks;  ///< that were run: one of each stage, in their order
  double seconds = 0;                ///< until the last rank has ended

  std::int64_t parameters() const {
    std::int64_t sum = 0;
    for (auto& rank : ranks) sum += rank.parameters;
    return sum;
  }
  double tokens_per_second() const { return static_cast<double>(simulation.rows * simulation.sequence) / seconds; }
  /// Floating-point operations of the model, 6 a parameter and token and its attention, over what the ranks could do.
  double utilisation() const {
    return (6.0 * static_cast<double>(parameters()) + simulation.attention_flops_per_token) * tokens_per_second() /
           (simulation.flops * simulation.ranks);
  }
  /// Share of their time that ranks wait for others.
  double bubble() const {
    double waiting = 0;
    for (auto& rank : ranks) waiting += rank.waiting + (seconds - rank.seconds);
    return waiting / (seconds * static_cast<double>(ranks.size()));
  }
};

namespace detail {

/// One rank of each stage: the first of the cluster along every other axis. Also fills in the size of the data axis.
inline std::vector<int> one_of_each_stage(int ranks, MeshOptions& mesh) {
  if (ranks < 1) throw ConfigError(text("a cluster has at least 1 rank, got ", ranks));
  for (auto [size, name] : {std::pair{mesh.tensor, "tensor"}, {mesh.pipeline, "pipeline"}, {mesh.context, "context"}})
    if (size < 1) throw ConfigError(text("mesh: the ", name, " axis needs at least 1 rank, got ", size));
  const auto others = std::int64_t{mesh.tensor} * mesh.pipeline * mesh.context;
  if (mesh.data == 0 && ranks % others == 0) mesh.data = static_cast<int>(ranks / others);
  if (mesh.data < 1 || others * mesh.data != ranks)
    throw ConfigError(text("mesh: ", mesh.tensor, " tensor x ", mesh.pipeline, " pipeline x ", mesh.context, " context",
                           mesh.data > 0 ? text(" x ", mesh.data, " data") : std::string(), " ranks do not fill ",
                           ranks, "; the nearest number of ranks that they do: ",
                           std::max<std::int64_t>(1, (ranks + others / 2) / others) * others));
  const auto strides = mesh_strides({mesh.data, mesh.tensor, mesh.pipeline, mesh.context}, mesh.order);
  const int stride = strides[static_cast<std::size_t>(Axis::pipeline)];
  std::vector<int> represented;
  for (int stage = 0; stage < mesh.pipeline; ++stage) represented.push_back(stage * stride);
  return represented;
}

/// The bytes that ranks have sent along an axis. Units over data and context ranks together count as the data axis,
/// but where that axis has one rank: then the context axis carries it.
inline Traffic traffic_along(const Mesh& mesh, Axis axis) {
  auto traffic = mesh.comm(axis).traffic();
  if (axis == Axis::data && mesh.size(Axis::data) > 1 && mesh.size(Axis::context) > 1) {
    const auto& both = mesh.sharding().traffic();
    for (std::size_t i = 0; i < traffic.calls.size(); ++i)
      traffic.calls[i] += both.calls[i], traffic.bytes[i] += both.bytes[i];
  }
  return traffic;
}
inline Traffic operator-(const Traffic& a, const Traffic& b) {
  Traffic rest = a;
  for (std::size_t i = 0; i < rest.calls.size(); ++i) rest.calls[i] -= b.calls[i], rest.bytes[i] -= b.bytes[i];
  return rest;
}

}  // namespace detail

/// The second of two steps: forward, backward, clipping, Adam. make(mesh) is the layer of the rank: with a mesh of
/// several stages a PipelineStage, with tensor ranks a TensorParallel inside. With a trace its spans are recorded,
/// in simulated seconds. Throws ConfigError, and whatever the engine throws.
template <Precision P, class Make>
SimulatedStep simulate(Simulation o, const Make& make, Trace* trace = nullptr) {
  auto represented = detail::one_of_each_stage(o.ranks, o.mesh);
  if (o.every_rank) {
    represented.resize(static_cast<std::size_t>(o.ranks));
    std::iota(represented.begin(), represented.end(), 0);
  }
  const auto passes = checked_product(o.mesh.data, o.micro_batches);
  if (o.rows < 1 || o.micro_batches < 1 || o.rows % passes)
    throw ConfigError(
        text("a step of ", o.rows, " rows is not ", o.mesh.data, " data ranks x ", o.micro_batches,
             " micro-batches x a number of rows; the nearest that is: ",
             std::max<std::int64_t>(1, (o.rows + passes / 2) / std::max<std::int64_t>(passes, 1)) * passes));
  SimulatedStep result;
  result.simulation = o;
  result.ranks.resize(represented.size());
  run_ranks(static_cast<int>(represented.size()), [&](const Comm& live) {
    Dry device({.pack = false}, o.kernels);
    auto& clock = device.clock();
    const auto world = simulated_comm(o.links, clock, o.ranks, represented, live);
    auto* recorder = trace ? &trace->rank(world.rank(), [&clock] { return clock.now(); }) : nullptr;
    world.record(recorder);
    const Mesh mesh{world, o.mesh};
    using Layer = decltype(make(mesh));
    ShardedEngine<Layer, P, Dry> model{mesh, device, make(mesh), o.stage, o.sharded};
    FusedAdam adam{model, o.adam};
    auto batch = Batch::on(device, o.rows / o.mesh.data, o.sequence);
    batch.labels_in_step = o.rows * o.sequence;

    auto& mine = result.ranks[static_cast<std::size_t>(live.rank())];
    SimulatedClock before;
    std::array<Traffic, mesh_axes> sent;
    for (int step = 0; step < 2; ++step) {
      world.barrier();
      before = clock;
      for (int axis = 0; axis < mesh_axes; ++axis)
        sent[static_cast<std::size_t>(axis)] = detail::traffic_along(mesh, static_cast<Axis>(axis));
      if (recorder) recorder->clear();
      model.train(batch, {.micro_batches = o.micro_batches});
      adam.step(1e-4f, clip_by_global_norm(model, 1.0f));
    }
    mine.rank = world.rank();
    mine.seconds = clock.now() - before.now();
    mine.computing = clock.computing() - before.computing();
    mine.communicating = clock.communicating() - before.communicating();
    mine.waiting = clock.waiting() - before.waiting();
    if (mesh.coordinate(Axis::data) + mesh.coordinate(Axis::tensor) + mesh.coordinate(Axis::context) == 0)
      for (const auto& [name, p] : model.parameters_by_name()) mine.parameters += element_count(p->whole_shape());
    mine.kept = device.pool().kept();
    mine.peak = device.pool().peak();
    for (int axis = 0; axis < mesh_axes; ++axis)
      mine.traffic[static_cast<std::size_t>(axis)] =
          detail::operator-(detail::traffic_along(mesh, static_cast<Axis>(axis)), sent[static_cast<std::size_t>(axis)]);
    if (live.rank() == 0) result.mesh = mesh.describe();
  });
  for (auto& stage : result.ranks) result.seconds = std::max(result.seconds, stage.seconds);
  return result;
}

/// A line for each rank that was run: its parts of the step, and its bytes.
inline std::string describe_ranks(const SimulatedStep& step) {
  std::string out = "    rank   computing ms  communicating  waiting      bytes\n";
  const auto column = [](std::string value, std::size_t width) {
    return std::string(width - std::min(width, value.size()), ' ') + value;
  };
  for (auto& rank : step.ranks)
    out += column(grouped(rank.rank), 8) + column(fixed(rank.computing * 1e3, 1), 15) +
           column(fixed(rank.communicating * 1e3, 1), 15) +
           column(fixed((rank.waiting + step.seconds - rank.seconds) * 1e3, 1), 9) +
           column(bytes_text(static_cast<double>(rank.kept.total() + rank.peak.total())), 11) + "\n";
  return out;
}

/// A run in advance, as text: the step, the bytes and the traffic of the rank of a stage that has most.
inline std::string describe(const SimulatedStep& step) {
  const auto& o = step.simulation;
  const auto ms = [](double seconds) { return fixed(seconds * 1e3, 1) + " ms"; };
  const auto share = [](double part) { return fixed(100 * part, 1) + " %"; };
  std::string out =
      text(step.mesh, "; parameters ", grouped(step.parameters()), "\n  a step       ", ms(step.seconds), ", ",
           grouped(static_cast<std::int64_t>(step.tokens_per_second())), " tokens/s, ",
           fixed(step.utilisation() * o.flops / 1e12, 1), " TFLOP/s of the model a rank: ", share(step.utilisation()),
           " of its peak\n  bubble       ", share(step.bubble()), "\n");
  double computing = 0, communicating = 0;
  for (auto& stage : step.ranks) computing += stage.computing, communicating += stage.communicating;
  const double all = step.seconds * static_cast<double>(step.ranks.size());
  out +=
      text("  computing    ", share(computing / all), ", waiting for communication ", share(communicating / all), "\n");

  const auto total = [](const SimulatedRank& rank) { return rank.kept.total() + rank.peak.total(); };
  const auto fullest =
      std::max_element(step.ranks.begin(), step.ranks.end(), [&](auto& a, auto& b) { return total(a) < total(b); });
  out +=
      text("  bytes        rank ", fullest->rank, ", the fullest: ", bytes_text(static_cast<double>(total(*fullest))));
  if (o.memory_bytes > 0)
    out += text(" of ", bytes_text(o.memory_bytes),
                static_cast<double>(total(*fullest)) > o.memory_bytes ? ": DOES NOT FIT" : "");
  out += '\n';
  for (std::size_t i = 0; i < purpose_names.size(); ++i)
    out += text("    ", purpose_names[i], std::string(13 - purpose_names[i].size(), ' '),
                bytes_text(static_cast<double>(fullest->kept.by[i])), " kept, ",
                bytes_text(static_cast<double>(fullest->peak.by[i])), " at the peak of a step\n");
  for (int axis = 0; axis < mesh_axes; ++axis) {
    const auto sent = [&](const SimulatedRank& rank) {
      std::int64_t bytes = 0;
      for (auto b : rank.traffic[static_cast<std::size_t>(axis)].bytes) bytes += b;
      return bytes;
    };
    const auto busiest =
        std::max_element(step.ranks.begin(), step.ranks.end(), [&](auto& a, auto& b) { return sent(a) < sent(b); });
    if (sent(*busiest) == 0) continue;
    std::int64_t calls = 0;
    for (auto c : busiest->traffic[static_cast<std::size_t>(axis)].calls) calls += c;
    const auto name = name_of(static_cast<Axis>(axis));
    out += text("  ", name, std::string(13 - name.size(), ' '), bytes_text(static_cast<double>(sent(*busiest))),
                " sent a step in ", grouped(calls), " calls by rank ", busiest->rank, ", the busiest\n");
  }
  return out;
}

}  // namespace zeropp
