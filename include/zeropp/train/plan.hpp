// SPDX-License-Identifier: Apache-2.0
// The memory that a rank will hold, to the byte, before any is taken: the engine itself, run for a step on the dry
// device.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include <zeropp/base/format.hpp>
#include <zeropp/comm/dry.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/parallel/sharding/sharded_engine.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

namespace zeropp {

struct Plan {
  std::int64_t parameters = 0, padding = 0;  ///< of the rank's part of the model
  std::string part = "all";                  ///< which blocks that is
  Bytes kept;                                ///< as long as the model lives
  Bytes peak;                                ///< at the fullest moment of a step, on top of what is kept
  std::size_t total = 0;                     ///< what the pool takes from the device
  /// By home, of the state that lives on tiers; the device's are `kept` and `total`.
  std::array<HomeBytes, home_names.size()> homes{};
};

struct PlanOptions {
  std::int64_t rows = 1, sequence = 1;  ///< of the batch of this rank
  std::int64_t micro_batches = 1;
  Stage stage = Stage::gradients;
  ShardedOptions sharded = {};
  AdamOptions adam = {};
};

/// The plan of the rank of a dry mesh, whose part of the model is `layer`: training and evaluation. D is Dry, or
/// DryCuda for runs on GPUs.
template <Precision P, Device D = Dry, class L>
Plan plan(const Mesh& mesh, L layer, const PlanOptions& o) {
  D dry;
  ShardedEngine<L, P, D> model{mesh, dry, std::move(layer), o.stage, o.sharded};
  FusedAdam adam{model, o.adam};
  auto batch = Batch::on(dry, o.rows, o.sequence);
  batch.labels_in_step = o.rows * o.sequence * mesh.size(Axis::data);
  model.train(batch, {.micro_batches = o.micro_batches});
  clip_by_global_norm(model, 1);
  model.evaluate(batch);
  Plan result{.kept = dry.pool().kept(), .peak = dry.pool().peak(), .total = dry.pool().planned()};
  for (auto& unit : model.units()) {
    result.parameters += unit.size();
    result.padding += unit.padded() - unit.size();
  }
  for (const auto home : {Home::host, Home::pinned, Home::disk})
    result.homes[static_cast<std::size_t>(home)] = dry.pool().at(home);
  result.part = model.describe();
  return result;
}

/// One line a purpose, the sum, and a line for each other tier on which state lives.
inline std::string describe(const Plan& plan) {
  auto out = text("  parameters   ", grouped(plan.parameters), ", and ", plan.padding, " of padding\n");
  for (std::size_t i = 0; i < purpose_names.size(); ++i)
    out += text("  ", purpose_names[i], std::string(13 - purpose_names[i].size(), ' '),
                bytes_text(static_cast<double>(plan.kept.by[i])), " kept, ",
                bytes_text(static_cast<double>(plan.peak.by[i])), " at the peak of a step\n");
  out += text("  in all       ", bytes_text(static_cast<double>(plan.total)), " (",
              grouped(static_cast<std::int64_t>(plan.total)), " B)");
  for (std::size_t i = 0; i < plan.homes.size(); ++i)
    if (const auto& home = plan.homes[i]; home.peak)
      out += text("\n  on ", home_names[i], std::string(10 - home_names[i].size(), ' '),
                  bytes_text(static_cast<double>(home.peak)), " (", describe(home.by), ")");
  return out;
}

}  // namespace zeropp
