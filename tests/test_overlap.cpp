// SPDX-License-Identifier: Apache-2.0
// Communication beside computing: where every operation runs as late as it may, training gives the bytes of operations
// that are over when they return. And a plan knows what is held meanwhile.
#include <doctest/doctest.h>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/dry.hpp>

#include "support/late.hpp"
#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

std::string on_threads(int ranks, Stage stage, bool is_late, const RunOptions& options) {
  std::vector<std::string> of_rank(static_cast<std::size_t>(ranks));
  run_ranks(ranks, {.limit = std::chrono::seconds(20)}, [&](Comm comm) {
    of_rank[static_cast<std::size_t>(comm.rank())] = train<Plain, Bf16>(stage, is_late ? late(comm) : comm, options);
  });
  for (auto& other : of_rank) REQUIRE(other == of_rank[0]);
  return of_rank[0];
}

#ifndef ZEROPP_CUDA
/// A device that plans for GPUs, where communication overlaps, without their headers (with them see gpu/test_training).
struct PlansForGpus : Dry {
  static constexpr bool cuda = true;
  std::unique_ptr<zeropp::detail::DryComms> comms = std::make_unique<zeropp::detail::DryComms>(*this);
  template <class T>
  T& companion() {
    return *comms;
  }
};
#endif

template <class D>
std::size_t planned(int ranks, int prefetch, std::size_t bucket_bytes) {
  D device;
  Sharded<Plain, Stage::parameters, Fp32, D> model{
      dry_comm(0, ranks), device, Plain{TinyConfig{}}, {.prefetch = prefetch, .bucket_bytes = bucket_bytes}};
  auto batch = Batch::on(device, 4, TinyConfig{}.sequence);
  batch.labels_in_step = 4 * TinyConfig{}.sequence * ranks;
  for (int step = 0; step < 3; ++step) {  // the second one asks for what the first one did
    model.train(batch, {.micro_batches = 2});
    model.publish_weights();
  }
  return device.pool().planned();
}

}  // namespace

TEST_CASE("every operation as late as it may be: the same bytes at every stage") {
  for (int ranks : {2, 3})
    for (std::int64_t micro_batches : {1, 2})
      for (auto reduction : {Reduction::every_micro_batch, Reduction::once}) {
        const RunOptions o{.micro_batches = micro_batches, .reduction = reduction};
        const auto base = on_threads(ranks, Stage::none, false, o);
        for (auto stage : all_stages) {
          CAPTURE(ranks);
          CAPTURE(micro_batches);
          CAPTURE(static_cast<int>(stage));
          CHECK(on_threads(ranks, stage, true, o) == base);
        }
      }
}

TEST_CASE("prefetch and buckets of any size change no byte, however late") {
  const auto base = on_threads(2, Stage::parameters, false, {.micro_batches = 2});
  for (int prefetch : {0, 1, 2, 100})
    for (std::size_t bytes : {std::size_t{0}, std::size_t{1} << 12, std::size_t{1} << 30}) {
      CAPTURE(prefetch);
      CAPTURE(bytes);
      CHECK(on_threads(2, Stage::parameters, true, {.micro_batches = 2, .prefetch = prefetch, .bucket_bytes = bytes}) ==
            base);
    }
}

TEST_CASE("after an error nothing stays under way, and the next step goes on") {
  run_ranks(2, {.limit = std::chrono::seconds(20)}, [](Comm comm) {
    Cpu cpu;
    const TinyConfig config;
    Sharded<Plain, Stage::parameters, Bf16> model{late(comm), cpu, Plain{config}, {.prefetch = 2}};
    auto batch = Batch::on(cpu, 2, config.sequence);
    const std::vector<std::int32_t> good(static_cast<std::size_t>(batch.tokens.size()), 3);
    auto bad = good;
    bad[5] = 61;
    batch.fill(bad, good);
    CHECK_THROWS_AS(model.train(batch), DataError);
    batch.fill(good, good);
    CHECK(std::isfinite(model.train(batch).mean()));
  });
}

#ifndef ZEROPP_CUDA
TEST_CASE("a plan for GPUs holds a unit more where one is fetched ahead, and a bucket more that is under way") {
  const auto host = planned<Dry>(4, 0, 0);
  CHECK(planned<Dry>(4, 1, 0) > host);
  CHECK(planned<PlansForGpus>(1, 0, 0) == planned<Dry>(1, 0, 0));
  const auto gpu = planned<PlansForGpus>(4, 0, 0);
  CHECK(gpu > host);
  CHECK(planned<PlansForGpus>(4, 1, 0) > gpu);
}
#endif
