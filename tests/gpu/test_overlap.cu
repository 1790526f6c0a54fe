// SPDX-License-Identifier: Apache-2.0
// Communication beside computing on GPUs: however units are gathered ahead and gradients bucketed, the bytes of losses,
// norms and weights are the same at every stage; on thread ranks that share a GPU, and over NCCL where there are more.
// A plan made without a GPU knows what is held meanwhile.
#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <vector>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/cuda.hpp>

#include "../support/tiny_gpt.hpp"

using namespace zeropp;
using namespace test;

namespace {

/// Each rank on a GPU of its own, or all on the first.
template <Stage S>
std::string on_gpus(int ranks, bool own, std::optional<int> prefetch, std::size_t bucket_bytes) {
  std::string mine;
  run_ranks(ranks, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    const RunOptions o{.micro_batches = 2};
    Cuda gpu{{.ordinal = own ? comm.rank() : 0}};
    Sharded<Plain, S, Bf16, Cuda> model{
        comm, gpu, Plain{o.config}, {.prefetch = prefetch, .bucket_bytes = bucket_bytes}};
    auto [bytes, weights] = record(model, comm, o);
    for (auto& [name, unit] : weights) bytes += unit;
    if (comm.rank() == 0) mine = bytes;
  });
  return mine;
}

void same_bytes(int ranks, bool own) {
  CAPTURE(ranks);
  const std::size_t usual = 1 << 12;
  const auto base = on_gpus<Stage::none>(ranks, own, {}, usual);
  CHECK(base == on_gpus<Stage::none>(ranks, own, {}, usual));
  CHECK(base == on_gpus<Stage::gradients>(ranks, own, {}, usual));
  CHECK(base == on_gpus<Stage::parameters>(ranks, own, {}, usual));
  for (const int prefetch : {0, 2, 100}) CHECK(base == on_gpus<Stage::parameters>(ranks, own, prefetch, usual));
  // Another size of buckets is another grouping of sums: the same bits in rank order; NCCL may choose another order.
  if (own) return;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1} << 30}) {
    CHECK(base == on_gpus<Stage::none>(ranks, own, {}, bytes));
    CHECK(base == on_gpus<Stage::parameters>(ranks, own, 1, bytes));
  }
}

template <class D>
std::size_t planned(const Comm& comm, D& device) {
  const TinyConfig config;
  Sharded<Plain, Stage::parameters, Bf16, D> model{comm, device, Plain{config}};
  FusedAdam adam{model, {}};
  auto batch = Batch::on(device, 4, config.sequence);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3);
  batch.fill(tokens, tokens);
  batch.labels_in_step = 4 * config.sequence * comm.size();
  for (int step = 0; step < 2; ++step) {
    model.train(batch, {.micro_batches = 2});
    adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
  }
  return device.pool().planned();
}

}  // namespace

TEST_CASE("thread ranks that share a GPU: prefetch, buckets and stages change no byte") {
  for (const int ranks : {2, 3}) same_bytes(ranks, false);
}

TEST_CASE("over NCCL: prefetch and stages change no byte, and two runs are the same") {
  if (cuda_devices() < 2) {
    MESSAGE("left out: this machine has one GPU");
    return;
  }
  same_bytes(2, true);
  if (cuda_devices() >= 4) same_bytes(4, true);
}

TEST_CASE("the plan of two ranks, made without a GPU, is what they take") {
  std::vector<std::size_t> used(2);
  run_ranks(2, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    Cuda gpu;
    used[static_cast<std::size_t>(comm.rank())] = planned(comm, gpu);
  });
  for (int rank = 0; rank < 2; ++rank) {
    DryCuda dry;
    CHECK(planned(dry_comm(rank, 2), dry) == used[static_cast<std::size_t>(rank)]);
  }
}
