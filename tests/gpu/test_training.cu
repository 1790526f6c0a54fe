// SPDX-License-Identifier: Apache-2.0
// The engine on a GPU: the losses of the CPU, the same bits over stages, recompute and runs, and a plan that is the
// use.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <zeropp/comm/thread.hpp>
#include <zeropp/device/cuda.hpp>

#include "../support/tiny_gpt.hpp"

using namespace zeropp;
using namespace test;

namespace {

/// Losses and norms of a run's record: `steps` pairs, then the loss of an evaluation.
std::vector<double> numbers(const std::string& bytes, int steps) {
  std::vector<double> all(static_cast<std::size_t>(2 * steps + 1));
  std::memcpy(all.data(), bytes.data(), all.size() * sizeof(double));
  return all;
}
double worst(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]) / std::abs(b[i]));
  return most;
}

}  // namespace

TEST_CASE("losses and norms are the CPU's: another order of sums, nothing else") {
  const RunOptions o{.steps = 6};
  const auto gpu = numbers(train<Plain, Stage::none, Fp32, Cuda>(Comm{}, o), o.steps);
  const auto cpu = numbers(train<Plain, Stage::none, Fp32, Cpu>(Comm{}, o), o.steps);
  const auto apart = worst(gpu, cpu);
  MESSAGE("fp32 on the GPU is ", apart, " from the CPU, relatively");
  CHECK(apart < 1e-5);
  const auto gpu16 = numbers(train<Plain, Stage::none, Bf16, Cuda>(Comm{}, o), o.steps);
  const auto cpu16 = numbers(train<Plain, Stage::none, Bf16, Cpu>(Comm{}, o), o.steps);
  MESSAGE("bf16: ", worst(gpu16, cpu16), ", and bf16 from fp32 ", worst(cpu16, cpu));
  CHECK(worst(gpu16, cpu16) < 2e-2);  // activations are rounded to 8 bits, in other places where operations are fused
}

TEST_CASE("two runs, every stage, recompute: the same bits") {
  for (const bool once : {false, true}) {
    RunOptions o{.micro_batches = 2, .reduction = once ? Reduction::once : Reduction::every_micro_batch};
    const auto first = train<Plain, Stage::none, Bf16, Cuda>(Comm{}, o);
    CHECK(first == train<Plain, Stage::none, Bf16, Cuda>(Comm{}, o));
    for (const auto stage : all_stages) CHECK(first == train<Plain, Bf16, Cuda>(stage, Comm{}, o));
    CHECK(first == train<Recomputed, Stage::parameters, Bf16, Cuda>(Comm{}, o));
  }
}

TEST_CASE("weights rounded stochastically: the same bits over stages, the losses of the CPU") {
  const RunOptions o{.steps = 6};
  std::vector<std::string> bytes;
  run_ranks(2, [&](Comm comm) {
    const auto whole = train<Plain, Stage::none, Bf16Stochastic, Cuda>(comm, o);
    const auto shards = train<Plain, Stage::parameters, Bf16Stochastic, Cuda>(comm, o);
    if (comm.rank() == 0) bytes = {whole, shards};
  });
  CHECK(bytes[0] == bytes[1]);
  const auto gpu = numbers(train<Plain, Stage::none, Bf16Stochastic, Cuda>(Comm{}, o), o.steps);
  const auto cpu = numbers(train<Plain, Stage::none, Bf16Stochastic, Cpu>(Comm{}, o), o.steps);
  MESSAGE("bf16 without masters: ", worst(gpu, cpu), " from the CPU");
  CHECK(worst(gpu, cpu) < 2e-2);
}

TEST_CASE("thread ranks that share the GPU: the same bits over stages, the losses of one rank") {
  const RunOptions o{.micro_batches = 2};
  const auto alone = numbers(train<Plain, Stage::none, Bf16, Cuda>(Comm{}, o), o.steps);
  for (const int ranks : {2, 3}) {
    std::vector<std::string> of_stage;
    for (const auto stage : all_stages) {
      std::string mine;
      run_ranks(ranks, [&](Comm comm) {
        const auto bytes = train<Plain, Bf16, Cuda>(stage, comm, o);
        if (comm.rank() == 0) mine = bytes;
      });
      of_stage.push_back(mine);
    }
    for (const auto& bytes : of_stage) CHECK(bytes == of_stage[0]);
    CHECK(worst(numbers(of_stage[0], o.steps), alone) < 1e-2);
  }
}

TEST_CASE("a plan made without a GPU is what the GPU takes, to the byte") {
  const RunOptions o{};
  const auto measure = [&]<class D>(D& device) {
    Sharded<Plain, Stage::gradients, Bf16, D> model{Comm{}, device, Plain{o.config}};
    FusedAdam adam{model, {}};
    auto batch = Batch::on(device, o.rows, o.config.context);
    const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3);
    batch.fill(tokens, tokens);
    model.train(batch);
    adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
    model.evaluate(batch);
    return std::pair{device.pool().kept(), device.pool().planned()};
  };
  Cuda gpu;
  DryCuda dry;
  const auto used = measure(gpu), planned = measure(dry);
  CHECK(used.first == planned.first);
  CHECK(used.second == planned.second);
}

TEST_CASE("a token beyond the vocabulary is a sentence, and the next step goes on") {
  const RunOptions o{};
  Cuda gpu;
  Sharded<Plain, Stage::none, Bf16, Cuda> model{Comm{}, gpu, Plain{o.config}};
  auto batch = Batch::on(gpu, 2, o.config.context);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3), labels = tokens;
  tokens[7] = 61;
  batch.fill(tokens, labels);
  CHECK_THROWS_WITH_AS((model.train(batch), gpu.synchronize()), doctest::Contains("token 61 at place 7"), DataError);
  tokens[7] = 60;
  batch.fill(tokens, labels);
  CHECK(std::isfinite(model.train(batch).mean()));
}
