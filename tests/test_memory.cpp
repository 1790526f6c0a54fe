// SPDX-License-Identifier: Apache-2.0
// Bytes: the 16Ψ/N pattern of the ZeRO paper to the byte, and a dry plan that equals the use to the byte.
#include <doctest/doctest.h>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/dry.hpp>

#include <zeropp/parallel/parallelize.hpp>

#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

struct Measured {
  Bytes kept, peak;
  std::size_t planned, allocated;
  std::int64_t parameters, padded;
  Traffic traffic;  ///< of the data axis
};

/// `layer` is this rank's part of the model.
template <class P, class L, class D>
Measured measure(Stage stage, const ModelComms& comms, D& device, L layer, std::int64_t micro_batches, int prefetch) {
  ShardedEngine<L, P, D> model{comms, device, std::move(layer), stage, {.prefetch = prefetch}};
  FusedAdam adam{model, {}};
  auto batch = Batch::on(device, 4, TinyConfig{}.sequence);
  if constexpr (!D::dry) {
    std::fill_n(batch.tokens.data(), batch.tokens.size(), 3);
    std::fill_n(batch.labels.data(), batch.labels.size(), 4);
  }
  batch.labels_in_step = batch.labels.size() * comms.sharding.size();
  for (int step = 0; step < 3; ++step) {
    model.train(batch, {.micro_batches = micro_batches});
    adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
  }
  std::int64_t padded = 0;
  for (auto& unit : model.units()) padded += unit.padded();
  auto& pool = device.pool();
  return {pool.kept(),        pool.peak(), pool.planned(),        pool.allocated(),
          model.parameters(), padded,      model.comm().traffic()};
}

template <class G, Stage S, class P, class D>
Measured measure(const Comm& comm, D& device, std::int64_t micro_batches, int prefetch) {
  return measure<P>(S, comm, device, G{TinyConfig{}}, micro_batches, prefetch);
}

template <class G, class P, Stage S>
void check(int ranks) {
  CAPTURE(ranks);
  CAPTURE(static_cast<int>(S));
  for (std::int64_t micro_batches : {1, 2})
    for (int prefetch : {0, 1}) {
      std::vector<Measured> used(static_cast<std::size_t>(ranks));
      run_ranks(ranks, {.limit = std::chrono::seconds(20)}, [&](Comm comm) {
        Cpu device;
        used[static_cast<std::size_t>(comm.rank())] = measure<G, S, P>(comm, device, micro_batches, prefetch);
      });
      for (int rank = 0; rank < ranks; ++rank) {
        Dry dry;
        const auto plan = measure<G, S, P>(dry_comm(rank, ranks), dry, micro_batches, prefetch);
        const auto& use = used[static_cast<std::size_t>(rank)];
        CHECK(plan.planned == use.planned);
        CHECK(use.allocated == use.planned);
        CHECK(plan.kept == use.kept);
        CHECK(plan.peak == use.peak);
      }

      const auto& m = used[0];
      const auto whole = static_cast<std::size_t>(m.padded), share = whole / static_cast<std::size_t>(ranks);
      const auto states = S >= Stage::optimizer_states ? share : whole;
      CHECK(m.kept[Purpose::weights] == sizeof(typename P::Weight) * (S >= Stage::parameters ? share : whole));
      // A tied table's gradient as a head is summed apart from the one as an embedding: one more share of that table.
      const auto tied = static_cast<std::size_t>(ceil_div(61 * 24, ranks));
      CHECK(m.kept[Purpose::gradients] ==
            sizeof(typename P::Gradient) * ((S >= Stage::gradients ? share : whole) + tied));
      CHECK(m.kept[Purpose::states] == (8 + (P::keeps_master ? sizeof(kept_t<typename P::Weight>) : 0)) * states);
      // The padding: less than one element a rank and unit (two tables, three blocks, the last norm).
      CHECK(m.padded - m.parameters < 6 * ranks);
    }
}

template <class G, class P>
void check_stages(int ranks) {
  check<G, P, Stage::none>(ranks);
  check<G, P, Stage::optimizer_states>(ranks);
  check<G, P, Stage::gradients>(ranks);
  check<G, P, Stage::parameters>(ranks);
}

}  // namespace

TEST_CASE("fp32: 4 + 4 + 8 bytes a parameter, partitioned by stage; the dry plan is the use") {
  for (int ranks : {1, 2, 3}) check_stages<Plain, Fp32>(ranks);
}

TEST_CASE("bf16: 2 + 4 + 10 bytes with gradients in fp32, 2 + 2 + 10 with gradients in bf16") {
  check_stages<Plain, Bf16>(2);
  check_stages<Plain, Bf16Gradients>(2);
}

TEST_CASE("fp16: 2 + 4 + 12 = 18 bytes a parameter: its masters are kept whole") {
  check_stages<Plain, Fp16>(2);
  Dry one;
  const auto m = measure<Plain, Stage::none, Fp16>(dry_comm(0, 1), one, 1, 0);
  CHECK(m.kept.total() - m.kept[Purpose::buffers] == 18 * static_cast<std::size_t>(m.parameters) + 4 * 61 * 24);
}

TEST_CASE("bf16 rounded stochastically: 2 + 2 + 8 = 12 bytes a parameter, padding and a tied table's share beside") {
  check_stages<Plain, Bf16Stochastic>(2);
  const auto kept = [](auto measured) { return measured.kept.total() - measured.kept[Purpose::buffers]; };
  Dry one, of_seven;
  const std::size_t table = 61 * 24;
  const auto a = measure<Plain, Stage::none, Bf16Stochastic>(dry_comm(0, 1), one, 1, 0);
  CHECK(a.padded == a.parameters);
  CHECK(kept(a) == 12 * static_cast<std::size_t>(a.parameters) + 2 * table);
  const auto b = measure<Plain, Stage::parameters, Bf16Stochastic>(dry_comm(3, 7), of_seven, 1, 0);
  CHECK(b.padded > b.parameters);
  CHECK(kept(b) == 12 * static_cast<std::size_t>(b.padded) / 7 + 2 * ceil_div(table, std::size_t{7}));
}

TEST_CASE("with recompute too, and it needs less") {
  check_stages<Recomputed, Fp32>(2);
  Dry plain, recomputed;
  const auto a = measure<Plain, Stage::none, Fp32>(dry_comm(0, 1), plain, 1, 0);
  const auto b = measure<Recomputed, Stage::none, Fp32>(dry_comm(0, 1), recomputed, 1, 0);
  CHECK(b.peak[Purpose::activations] < a.peak[Purpose::activations]);
}

TEST_CASE("stage 3 of 1,000 ranks keeps a thousandth, and a plan for them takes no memory") {
  Dry dry;
  const auto m = measure<Plain, Stage::parameters, Fp32>(dry_comm(999, 1000), dry, 1, 0);
  const auto tied = static_cast<std::size_t>(ceil_div(61 * 24, 1000));
  CHECK(m.kept.total() - m.kept[Purpose::buffers] == 16 * static_cast<std::size_t>(m.padded) / 1000 + 4 * tied);
}

TEST_CASE(
    "the dry plan is the use on every rank of a mesh; with data ranks alone it is the plan and traffic of the model") {
  const auto o = mesh_options();
  const auto on = [&](const Mesh& mesh, auto& device, const ParallelOptions& options) {
    return measure<Bf16>(Stage::gradients, mesh, device, parallelize(mesh, Plain{o.config}, options), 4, 0);
  };
  for (const auto& options : {ParallelOptions{.sequence_parallel = true, .width = o.config.width},
                              ParallelOptions{.schedule = PipelineKind::zb_v, .chunks = 2, .width = o.config.width}}) {
    const MeshOptions axes{.tensor = 2, .pipeline = 2};
    std::vector<Measured> used(8);
    run_ranks(8, {.limit = std::chrono::seconds(20)}, [&](Comm comm) {
      Cpu device;
      used[static_cast<std::size_t>(comm.rank())] = on(Mesh{comm, axes}, device, options);
    });
    for (int rank = 0; rank < 8; ++rank) {
      CAPTURE(rank);
      Dry dry;
      const auto plan = on(Mesh{dry_comm(rank, 8), axes}, dry, options);
      const auto& use = used[static_cast<std::size_t>(rank)];
      CHECK(plan.planned == use.planned);
      CHECK(use.allocated == use.planned);
      CHECK(plan.kept == use.kept);
      CHECK(plan.peak == use.peak);
      CHECK(plan.parameters == used[0].parameters);  // of the whole model
    }
  }
  Dry alone, meshed;
  const auto a = measure<Bf16>(Stage::gradients, dry_comm(1, 3), alone, Plain{o.config}, 4, 0);
  const auto b = on(Mesh{dry_comm(1, 3)}, meshed, {.width = o.config.width});
  CHECK(a.planned == b.planned);
  CHECK(a.kept == b.kept);
  CHECK(a.peak == b.peak);
  // Adam's settings are compared over all ranks: a mesh has a communicator for those beside that of its data ranks.
  const auto gather = static_cast<std::size_t>(Collective::all_gather);
  auto with_settings = b.traffic;
  with_settings.calls[gather] += 1, with_settings.bytes[gather] += 2 * std::int64_t{sizeof(std::int64_t)};
  CHECK(a.traffic.calls == with_settings.calls);
  CHECK(a.traffic.bytes == with_settings.bytes);
}
