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
#include <zeropp/train/loss_scale.hpp>

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

TEST_CASE("fp16 with a loss scale: the same bits over stages, the losses of the CPU") {
  const RunOptions o{.steps = 6, .loss_scale = 1024};
  const auto bytes = train<Plain, Stage::none, Fp16, Cuda>(Comm{}, o);
  CHECK(bytes == train<Plain, Stage::none, Fp16, Cuda>(Comm{}, o));
  std::vector<std::string> of_stage(2);
  run_ranks(2, [&](Comm comm) {
    const auto whole = train<Plain, Stage::none, Fp16, Cuda>(comm, o);
    const auto shards = train<Plain, Stage::parameters, Fp16, Cuda>(comm, o);
    if (comm.rank() == 0) of_stage = {whole, shards};
  });
  CHECK(of_stage[0] == of_stage[1]);
  const auto gpu = numbers(bytes, o.steps);
  const auto cpu = numbers(train<Plain, Stage::none, Fp16, Cpu>(Comm{}, o), o.steps);
  MESSAGE("fp16: ", worst(gpu, cpu), " from the CPU");
  CHECK(worst(gpu, cpu) < 5e-3);  // 11 bits, rounded in other places
}

TEST_CASE("fp16: a step that overflows leaves no trace, the scale halves, training goes on") {
  const RunOptions o{};
  Cuda gpu;
  Sharded<Plain, Stage::none, Fp16, Cuda> model{Comm{}, gpu, Plain{o.config}};
  FusedAdam adam{model, {}};
  LossScaler scaler{{.initial = 0x1p60f, .hysteresis = 1}};
  auto batch = Batch::on(gpu, o.rows, o.config.context);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3);
  batch.fill(tokens, tokens);
  const auto bits = [&] {
    std::string all;
    const auto put = [&](auto span) {
      const auto at = all.size();
      all.resize(at + span.size_bytes());
      gpu.download(all.data() + at, span.data(), span.size_bytes());
    };
    for (std::size_t u = 0; u < model.units().size(); ++u) {
      auto& unit = model.units()[u];
      put(unit.weights()), put(unit.masters()), put(adam.first(u)), put(adam.second(u));
    }
    return all;
  };
  double loss = 0;
  const auto step = [&] {
    loss = model.train(batch, {.loss_scale = scaler.scale()}).mean();
    const bool done = adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    scaler.update(done);
    return done;
  };
  const auto before = bits();
  REQUIRE(!step());
  CHECK(bits() == before);
  CHECK(scaler.scale() == 0x1p59f);
  const double first = loss;
  CHECK(first == doctest::Approx(std::log(61.0)).epsilon(0.1));
  int skipped = 1;
  while (skipped < 60 && !step()) ++skipped;
  CHECK(skipped > 10);
  CHECK(skipped < 60);
  CHECK(bits() != before);
  for (int i = 0; i < 10; ++i) CHECK(step());
  CHECK(loss < first / 2);
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
