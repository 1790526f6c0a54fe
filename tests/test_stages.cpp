// SPDX-License-Identifier: Apache-2.0
// The same bytes of losses, norms and weights over stages, recompute, prefetch, buckets and compute threads, for every
// number of ranks and micro-batches. Ten rows over eight ranks and three micro-batches: some passes are empty.
#include <doctest/doctest.h>

#include <zeropp/comm/threads/threads.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

template <class G, class P = Fp32>
std::string on_threads(int ranks, Stage stage, const RunOptions& options = {}) {
  std::vector<std::string> of_rank(static_cast<std::size_t>(ranks));
  run_ranks(ranks, {.limit = std::chrono::seconds(20)},
            [&](Comm comm) { of_rank[static_cast<std::size_t>(comm.rank())] = train<G, P>(stage, comm, options); });
  for (auto& other : of_rank) REQUIRE(other == of_rank[0]);
  return of_rank[0];
}

double first_loss(const std::string& bytes) {
  double loss;
  std::memcpy(&loss, bytes.data(), sizeof loss);
  return loss;
}

}  // namespace

TEST_CASE("stages and recompute give the same bytes for every number of ranks and micro-batches") {
  for (int ranks : {1, 2, 3, 4, 8})
    for (std::int64_t micro_batches : {1, 3}) {
      CAPTURE(ranks);
      CAPTURE(micro_batches);
      const RunOptions options{.micro_batches = micro_batches};
      const auto base = on_threads<Plain>(ranks, Stage::none, options);
      CHECK(first_loss(base) == doctest::Approx(std::log(61.0)).epsilon(0.05));
      for (auto stage : all_stages) {
        CAPTURE(static_cast<int>(stage));
        CHECK(on_threads<Plain>(ranks, stage, options) == base);
        CHECK(on_threads<Recomputed>(ranks, stage, options) == base);
      }
    }
}

TEST_CASE("reducing once a step gives the same bytes at every stage, and other bytes than reducing every micro-batch") {
  const RunOptions once{.micro_batches = 3, .reduction = Reduction::once};
  const auto base = on_threads<Plain>(2, Stage::none, once);
  for (auto stage : all_stages) CHECK(on_threads<Plain>(2, stage, once) == base);
  CHECK(base != on_threads<Plain>(2, Stage::none, {.micro_batches = 3}));
}

TEST_CASE("prefetch, bucket size and compute threads do not change bytes") {
  const auto base = on_threads<Plain>(2, Stage::parameters);
  for (int prefetch : {1, 2, 100}) CHECK(on_threads<Plain>(2, Stage::parameters, {.prefetch = prefetch}) == base);
  for (std::size_t bytes : {std::size_t{0}, std::size_t{1} << 30})
    CHECK(on_threads<Plain>(2, Stage::parameters, {.bucket_bytes = bytes}) == base);
  CHECK(on_threads<Plain>(2, Stage::parameters, {.threads = 2}) == base);
}

TEST_CASE("bf16 weights over an exact master: the same bytes at every stage") {
  const auto base = on_threads<Plain, Bf16>(3, Stage::none, {.micro_batches = 2});
  for (auto stage : all_stages) CHECK(on_threads<Plain, Bf16>(3, stage, {.micro_batches = 2}) == base);
  const auto narrow = on_threads<Plain, Bf16Gradients>(3, Stage::none, {.micro_batches = 2});
  for (auto stage : all_stages) CHECK(on_threads<Plain, Bf16Gradients>(3, stage, {.micro_batches = 2}) == narrow);
  CHECK(narrow != base);
}

TEST_CASE("fp16 weights beside whole masters, with a loss scale: the same bytes at every stage, with any threads") {
  const auto run = [](Stage stage, RunOptions o) {
    o.micro_batches = 2, o.loss_scale = 1024;
    return on_threads<Plain, Fp16>(3, stage, o);
  };
  const auto base = run(Stage::none, {});
  for (auto stage : all_stages) CHECK(run(stage, {}) == base);
  CHECK(run(Stage::parameters, {.threads = 2}) == base);
}

TEST_CASE("weights rounded stochastically: the same bytes at every stage, with any number of compute threads") {
  for (int ranks : {1, 3}) {
    const auto base = on_threads<Plain, Bf16Stochastic>(ranks, Stage::none, {.micro_batches = 2});
    for (auto stage : all_stages) CHECK(on_threads<Plain, Bf16Stochastic>(ranks, stage, {.micro_batches = 2}) == base);
    CHECK(on_threads<Plain, Bf16Stochastic>(ranks, Stage::parameters, {.micro_batches = 2, .threads = 2}) == base);
    CHECK(on_threads<Plain, Bf16Gradients>(ranks, Stage::none, {.micro_batches = 2}) != base);
  }
}

TEST_CASE("weights rounded stochastically learn what weights with masters learn") {
  const RunOptions options{.steps = 150};
  const auto last_loss = [&](const std::string& bytes) {
    double loss;  // of the evaluation after the steps' losses and norms
    std::memcpy(&loss, bytes.data() + 2 * sizeof loss * static_cast<std::size_t>(options.steps), sizeof loss);
    return loss;
  };
  const auto masters = last_loss(on_threads<Plain, Bf16Gradients>(1, Stage::none, options));
  const auto rounded = last_loss(on_threads<Plain, Bf16Stochastic>(1, Stage::none, options));
  MESSAGE("loss " << masters << " with masters, " << rounded << " without");
  CHECK(masters < 1);
  CHECK(rounded == doctest::Approx(masters).epsilon(0.2));
}

TEST_CASE("initial weights depend on neither stage nor number of ranks") {
  const RunOptions untrained{.steps = 0};
  const auto one = on_threads<Plain>(1, Stage::none, untrained);

  for (int ranks : {2, 3, 8})
    for (auto stage : all_stages) CHECK(on_threads<Plain>(ranks, stage, untrained) == one);
}
