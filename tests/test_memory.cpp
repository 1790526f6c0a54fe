// SPDX-License-Identifier: Apache-2.0
// Bytes: the 16Ψ/N pattern of the ZeRO paper to the byte, and a dry plan that equals the use to the byte.
#include <doctest/doctest.h>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/thread.hpp>
#include <zeropp/device/dry.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

struct Measured {
  Bytes kept, peak;
  std::size_t planned, allocated;
  std::int64_t parameters, padded;
};

template <class G, Stage S, class P, class D>
Measured measure(const Comm& comm, D& device, std::int64_t micro_batches, int prefetch) {
  const TinyConfig config;
  Sharded<G, S, P, D> model{comm, device, G{config}, {.prefetch = prefetch}};
  FusedAdam adam{model, {}};
  auto batch = Batch::on(device, 4, config.context);
  if constexpr (!D::dry) {
    std::fill_n(batch.tokens.data(), batch.tokens.size(), 3);
    std::fill_n(batch.labels.data(), batch.labels.size(), 4);
  }
  batch.labels_in_step = batch.labels.size() * comm.size();
  for (int step = 0; step < 3; ++step) {
    model.train(batch, {.micro_batches = micro_batches});
    adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
  }
  std::int64_t padded = 0;
  for (auto& unit : model.units()) padded += unit.padded();
  auto& pool = device.pool();
  return {pool.kept(), pool.peak(), pool.planned(), pool.allocated(), model.parameters(), padded};
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
      CHECK(m.kept[Purpose::states] == (std::is_same_v<typename P::Weight, bf16> ? 10 : 8) * states);
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
