// SPDX-License-Identifier: Apache-2.0
// mesh.json: a cluster, the mesh on it and what is trained, for the simulator (docs/simulate.md lists the keys).
#pragma once

#include <cstdint>
#include <string>

#include <zeropp/parallel/pipeline/schedule.hpp>
#include <zeropp/app/config/config.hpp>
#include <zeropp/train/simulate/simulate.hpp>

namespace zeropp {

/// The content of mesh.json. The caller chooses engine types from `stage`, `precision` and `recompute`.
struct SimulationFile {
  Simulation simulation = {};
  DeviceTable device = {};
  struct Model {
    std::int64_t layers = 12, heads = 12, width = 768, sequence = 1024, vocabulary = 50304;
  } model = {};
  int stage = 1;  ///< of ZeRO
  std::string precision = "bf16";
  bool recompute = false, sequence_parallel = false;
  PipelineKind schedule = PipelineKind::one_forward_one_backward;
  int chunks = 0;  ///< 0: the fewest that the schedule takes
};

namespace detail {

inline void read_link(ConfigSection& links, const std::string& key, Link& link) {
  auto section = links.section(key);
  section.read("bandwidth", link.bandwidth, 1, 1e18);
  section.read("latency", link.latency, 0, 1e3);
  section.finish();
}

}  // namespace detail

/// Reads the text of a file called `path`; keys that are not there keep the values of an A100 cluster. Throws
/// ConfigError with the line for an unknown key (and the nearest that exists), a wrong type or a value out of range.
inline SimulationFile read_simulation(const std::string& path, const std::string& content) {
  const ConfigFile file(path, content);
  auto root = file.root();
  SimulationFile s;
  auto& o = s.simulation;

  if (root.read("precision", s.precision) && s.precision != "bf16" && s.precision != "fp16" && s.precision != "fp32")
    root.refuse("precision", text("must be \"bf16\", \"fp16\" or \"fp32\", got \"", s.precision, "\""));
  auto device = root.section("device");
  auto flops = device.section("flops");
  double bf16_flops = s.device.flops, fp32_flops = 19.5e12;
  flops.read("bf16", bf16_flops, 1, 1e18);
  auto fp16_flops = bf16_flops;  // tensor cores are as fast in both
  flops.read("fp16", fp16_flops, 1, 1e18);
  flops.read("fp32", fp32_flops, 1, 1e18);
  flops.finish();
  s.device.flops = s.precision == "bf16" ? bf16_flops : s.precision == "fp16" ? fp16_flops : fp32_flops;
  device.read("memory_bandwidth", s.device.memory_bandwidth, 1, 1e18);
  device.read("memory_bytes", s.device.memory_bytes, 0, 1e18);
  device.read("launch", s.device.launch, 0, 1);
  auto achieved = device.section("achieved");
  achieved.read("matmul", s.device.matmul, 1e-6, 1);
  achieved.read("attention", s.device.attention, 1e-6, 1);
  achieved.read("memory", s.device.memory, 1e-6, 1);
  achieved.finish();
  device.finish();

  auto links = root.section("links");
  links.read("ranks_per_node", o.links.ranks_per_node, 1, 1e6);
  detail::read_link(links, "node", o.links.node);
  detail::read_link(links, "network", o.links.network);
  links.read("overlap", o.links.overlap);
  links.finish();

  root.read("ranks", o.ranks, 1, 1e6);
  auto mesh = root.section("mesh");
  mesh.read("data", o.mesh.data, 0, 1e6);
  mesh.read("tensor", o.mesh.tensor, 1, 1e6);
  mesh.read("pipeline", o.mesh.pipeline, 1, 1024);
  mesh.read("context", o.mesh.context, 1, 1e6);
  mesh.finish();

  auto model = root.section("model");
  model.read("layers", s.model.layers, 1, 1e5);
  model.read("heads", s.model.heads, 1, 1e5);
  model.read("width", s.model.width, 1, 1e6);
  model.read("context", s.model.sequence, 1, 1e7);
  model.read("vocabulary", s.model.vocabulary, 1, 1e8);
  model.finish();

  auto batch = root.section("batch");
  batch.read("rows", o.rows, 1, 1e9);
  batch.read("micro_batches", o.micro_batches, 1, 1e6);
  batch.finish();

  auto pipeline = root.section("pipeline");
  if (std::string name; pipeline.read("schedule", name))
    s.schedule = pipeline.made("schedule", "is unknown", [&] { return pipeline_kind(name); });
  pipeline.read("chunks", s.chunks, 1, 1e4);
  pipeline.finish();

  auto zero = root.section("zero_optimization");
  zero.read("stage", s.stage, 0, 3);
  if (int units = 0; zero.read("prefetch_units", units, 0, 1e6)) o.sharded.prefetch = units;
  bool every = true;
  if (zero.read("reduce_every_micro_batch", every) && !every) o.sharded.reduction = Reduction::once;
  zero.finish();
  root.read("recompute", s.recompute);
  root.read("sequence_parallel", s.sequence_parallel);
  if (std::string name; root.read("context_attention", name))
    o.sharded.context_attention = root.made("context_attention", "is unknown", [&] { return context_attention(name); });
  if (o.sharded.context_attention == ContextAttention::ulysses &&
      s.model.heads / o.mesh.tensor % o.mesh.context)  // then ranks differ, and one cannot stand for all
    root.refuse("mesh", text("has ", o.mesh.context, " context ranks, which do not divide the ", s.model.heads,
                             " heads on ", o.mesh.tensor, " tensor ranks evenly; ring attention needs no even heads"));
  root.finish();

  o.kernels = s.device;
  o.flops = s.device.flops;
  o.memory_bytes = s.device.memory_bytes;
  o.sequence = s.model.sequence;
  o.attention_flops_per_token = 6.0 * static_cast<double>(s.model.layers * s.model.width * s.model.sequence);
  return s;
}

}  // namespace zeropp
