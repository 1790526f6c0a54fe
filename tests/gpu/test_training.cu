// SPDX-License-Identifier: Apache-2.0
// The engine on a GPU: the losses of the CPU, the same bits over stages, recompute and runs, and a plan that is the
// use.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <zeropp/comm/threads/threads.hpp>
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

/// The bytes of weights, masters and moments.
template <class Model>
std::string state_of(Model& model, FusedAdam<ShardedState<typename Model::Precision, typename Model::Device>>& adam) {
  std::string all;
  const auto put = [&](auto span) {
    const auto at = all.size();
    all.resize(at + span.size_bytes());
    model.device().download(all.data() + at, span.data(), span.size_bytes());
  };
  for (std::size_t u = 0; u < model.units().size(); ++u) {
    auto& unit = model.units()[u];
    put(unit.weights()), put(unit.masters()), put(adam.slot(0, u)), put(adam.slot(1, u));
  }
  return all;
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

TEST_CASE("steps that run as a graph have the bits of steps that don't") {
  for (const bool once : {false, true}) {
    RunOptions o{.micro_batches = 2,
                 .steps = 7,
                 .reduction = once ? Reduction::once : Reduction::every_micro_batch,
                 .loss_scale = once ? 4.0f : 1.0f,
                 .config = {.dropout = 0}};
    const auto plain = train<Plain, Stage::none, Bf16, Cuda>(Comm{}, o);
    o.graph = true;
    for (const auto stage : all_stages) CHECK(plain == train<Plain, Bf16, Cuda>(stage, Comm{}, o));
    CHECK(plain == train<Recomputed, Stage::parameters, Bf16, Cuda>(Comm{}, o));
  }
}

namespace {

/// Everything that must be equal of a model with heads of 64, whose attention runs on tensor cores.
template <Stage S>
std::string with_heads_of_64(bool graph) {
  const RunOptions o{.rows = 4,
                     .micro_batches = 2,
                     .steps = 6,
                     .config = {.sequence = 160, .width = 128, .heads = 2, .layers = 2, .dropout = 0}};
  Cuda gpu;
  Sharded<Plain, S, Bf16, Cuda> model{Comm{}, gpu, Plain{o.config}, {.graph = graph}};
  auto [bytes, weights] = record(model, Comm{}, o);
  CHECK(model.captured() == graph);
  for (const auto& [name, unit] : weights) bytes += unit;
  return bytes;
}

}  // namespace

TEST_CASE("heads of 64: the same bits over stages, of steps that run as a graph and of steps that don't") {
  const auto plain = with_heads_of_64<Stage::none>(false);
  CHECK(plain == with_heads_of_64<Stage::none>(true));
  CHECK(plain == with_heads_of_64<Stage::parameters>(false));
  CHECK(plain == with_heads_of_64<Stage::parameters>(true));
}

namespace {

/// A model of one rank whose steps may run as a graph, and batches of one token each.
template <class G = Plain>
struct Trainer {
  explicit Trainer(bool graph, G layer = G{TinyConfig{.dropout = 0}})
      : model{Comm{}, gpu, std::move(layer), {.graph = graph}} {}
  Loss step(int token, float loss_scale = 1) {
    const auto places = static_cast<std::size_t>(batch.tokens.size());
    batch.fill(std::vector<std::int32_t>(places, token), std::vector<std::int32_t>(places, std::min(token, 60)));
    const auto loss = model.train(batch, {.loss_scale = loss_scale});
    adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    return loss;
  }
  Cuda gpu;
  Sharded<G, Stage::gradients, Bf16, Cuda> model;
  FusedAdam<ShardedState<Bf16, Cuda>> adam{model};
  Batch batch = Batch::on(gpu, 2, TinyConfig{}.sequence);
};

/// Its forward waits for the GPU.
struct Waiting : Sequential<GptEmbedding, LmHead> {
  Waiting() : Sequential{GptEmbedding{{.vocabulary = 61, .sequence = 12, .width = 24}}, LmHead{"lm_head", 61, 24}} {}
  template <class C, class X>
  auto forward(C& ctx, X x) {
    ctx.device.synchronize();
    return Sequential::forward(ctx, std::move(x));
  }
};

}  // namespace

TEST_CASE("a graph is captured at the third equal step, and anew when numbers or memory change") {
  Trainer with(true), without(false);
  const auto both = [&](int token, float loss_scale = 1) {
    const double a = with.step(token, loss_scale).mean(), b = without.step(token, loss_scale).mean();
    CHECK(a == b);
    CHECK(!without.model.captured());
    return with.model.captured();
  };
  CHECK(!both(1));
  CHECK(!both(2));
  CHECK(both(3));
  CHECK(both(4));
  CHECK(!both(5, 2));  // another loss scale
  CHECK(!both(6, 2));
  CHECK(both(7, 2));
  auto larger = Batch::on(with.gpu, 4096, TinyConfig{}.sequence);  // its evaluation needs a larger arena
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(larger.tokens.size()), 8);
  larger.fill(tokens, tokens);
  with.model.evaluate(larger);
  for (int token = 8; token < 12; ++token) both(token, 2);
  CHECK(with.model.captured());
  CHECK(with.model.step() == 11);
}

TEST_CASE("losses of captured steps may be read later, each its own") {
  Trainer with(true), without(false);
  std::vector<Loss> later;
  std::vector<double> wanted;
  for (int i = 0; i < 8; ++i) {
    later.push_back(with.step(i));
    wanted.push_back(without.step(i).mean());
  }
  CHECK(with.model.captured());
  for (std::size_t i = 0; i < later.size(); ++i) CHECK(later[i].mean() == wanted[i]);
}

TEST_CASE("a captured step that can't be done leaves no trace; the next one goes on") {
  Trainer t(true);
  for (int i = 0; i < 4; ++i) t.step(i);
  REQUIRE(t.model.captured());
  t.step(61);  // no token of this vocabulary
  CHECK_THROWS_WITH_AS(t.step(1), doctest::Contains("token 61 at place"), DataError);
  CHECK(std::isfinite(t.step(1).mean()));
  CHECK(t.model.captured());
}

TEST_CASE("a bad label of a captured step is thrown once to who goes on, and once to who reads that loss") {
  Trainer t(true);
  for (int i = 0; i < 4; ++i) t.step(i);
  REQUIRE(t.model.captured());
  const auto places = static_cast<std::size_t>(t.batch.tokens.size());
  t.batch.fill(std::vector<std::int32_t>(places, 1), std::vector<std::int32_t>(places, 61));
  const auto bad = t.model.train(t.batch);
  t.adam.step(1e-2f, clip_by_global_norm(t.model, 1.0f));
  CHECK_THROWS_WITH_AS(t.step(1), doctest::Contains("label 61 at place"), DataError);
  CHECK(std::isfinite(t.step(1).mean()));
  CHECK_THROWS_WITH_AS(bad.mean(), doctest::Contains("label 61 at place"), DataError);
  t.step(2);
  CHECK(t.model.step() == 6);
  CHECK(t.adam.steps() == 6);
  CHECK(t.adam.skipped() == 1);
}

TEST_CASE("a bad token on one of two ranks: both leave the step out") {
  run_ranks(2, [&](Comm comm) {
    Cuda gpu;
    Sharded<Plain, Stage::gradients, Bf16, Cuda> model{comm, gpu, Plain{TinyConfig{}}};
    FusedAdam adam{model, {}};
    auto batch = Batch::on(gpu, 2, TinyConfig{}.sequence);
    const auto places = static_cast<std::size_t>(batch.tokens.size());
    const auto step = [&](int token) {
      batch.fill(std::vector<std::int32_t>(places, token), std::vector<std::int32_t>(places, 1));
      model.train(batch);
      return adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    };
    const auto expect = [&](bool good) {  // doctest's macros belong to one thread
      if (!good) throw Error(text("rank ", comm.rank(), " did not go that way"));
    };
    expect(step(1));
    const auto done = step(comm.rank() == 1 ? 61 : 1);
    bool threw = false, finite = true;
    try {
      finite = done;
    } catch (const DataError&) {
      threw = true;
    }
    expect(comm.rank() == 1 ? threw : !threw && !finite);
    expect(step(2));
    expect(adam.steps() == 2 && adam.skipped() == 1 && model.step() == 2);
  });
}

TEST_CASE("what draws random numbers is not captured, what waits for the GPU is refused") {
  Trainer drops(true, Plain{TinyConfig{.dropout = 0.5f}});
  for (int i = 0; i < 4; ++i) drops.step(i);
  CHECK(!drops.model.captured());
  Trainer<Waiting> waits(true, Waiting{});
  waits.step(1), waits.step(2);
  CHECK_THROWS_WITH_AS(waits.step(3), doctest::Contains("waiting for the GPU is no part of a graph"), CudaError);
  CHECK_THROWS_WITH_AS(waits.step(4), doctest::Contains("waiting for the GPU is no part of a graph"), CudaError);
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
  auto batch = Batch::on(gpu, o.rows, o.config.sequence);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3);
  batch.fill(tokens, tokens);
  const auto bits = [&] { return state_of(model, adam); };
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
    auto batch = Batch::on(device, o.rows, o.config.sequence);
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
  auto batch = Batch::on(gpu, 2, o.config.sequence);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()), 3), labels = tokens;
  tokens[7] = 61;
  batch.fill(tokens, labels);
  CHECK_THROWS_WITH_AS((model.train(batch), gpu.synchronize()), doctest::Contains("token 61 at place 7"), DataError);
  FusedAdam adam{model, {}};
  tokens[7] = 1;
  batch.fill(tokens, labels);
  model.train(batch);
  CHECK(adam.step(1e-2f, clip_by_global_norm(model, 1.0f)));  // a program waits when it runs for the first time
  const auto before = state_of(model, adam);
  tokens[7] = 61;
  batch.fill(tokens, labels);
  model.train(batch);
  const auto done = adam.step(1e-2f, clip_by_global_norm(model, 1.0f));  // enqueued with nobody having looked
  CHECK_THROWS_WITH_AS(static_cast<bool>(done), doctest::Contains("token 61 at place 7"), DataError);
  CHECK(state_of(model, adam) == before);
  tokens[7] = 60;
  batch.fill(tokens, labels);
  CHECK(std::isfinite(model.train(batch).mean()));
  CHECK(adam.step(1e-2f, clip_by_global_norm(model, 1.0f)));
  CHECK(adam.steps() == 2);
  CHECK(model.step() == 2);
}

TEST_CASE("a GPU takes the place of the CPU, and nothing else changes") {
  const auto losses = [](auto& device) {
    const TinyConfig config{.dropout = 0};
    auto model = sharded<Stage::gradients>(Comm{}, device, Plain{config});
    FusedAdam adam{model};
    auto batch = Batch::on(device, 4, config.sequence);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size())), labels(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(i * 7 % 61), labels[i] = static_cast<std::int32_t>(i * 5 % 61);
    batch.fill(tokens, labels);
    std::vector<double> all;
    for (int step = 0; step < 5; ++step) {
      all.push_back(model.train(batch).mean());
      adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    }
    return all;
  };
  Cpu cpu;
  Cuda gpu;
  const auto there = losses(gpu), here = losses(cpu);
  for (std::size_t i = 0; i < here.size(); ++i) CHECK(there[i] == doctest::Approx(here[i]).epsilon(1e-4));
  CHECK(here.back() < here.front());
}

TEST_CASE("several models on one GPU, in turn, with the bits that each has alone") {
  const auto step = [](auto& model, auto& adam, Batch& batch) {
    const auto loss = model.train(batch).mean();
    adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    return loss;
  };
  const auto of = [](std::int64_t width) { return Plain{{.width = width, .dropout = 0}}; };
  const auto filled = [](Cuda& gpu) {
    auto batch = Batch::on(gpu, 4, TinyConfig{}.sequence);
    std::vector<std::int32_t> values(static_cast<std::size_t>(batch.tokens.size()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i * 11 % 61);
    batch.fill(values, values);
    return batch;
  };
  std::vector<double> alone[2], together[2];
  for (int which : {0, 1}) {
    Cuda gpu;
    ShardedEngine<Plain, Fp32, Cuda> model{Comm{}, gpu, of(which ? 48 : 24), Stage::gradients, {.graph = true}};
    FusedAdam adam{model};
    auto batch = filled(gpu);
    for (int i = 0; i < 6; ++i) alone[which].push_back(step(model, adam, batch));  // the last ones as a graph
  }
  Cuda gpu;
  ShardedEngine<Plain, Fp32, Cuda> a{Comm{}, gpu, of(24), Stage::gradients, {.graph = true}},
      b{Comm{}, gpu, of(48), Stage::gradients, {.graph = true}};
  FusedAdam of_a{a}, of_b{b};
  auto batch = filled(gpu);
  for (int i = 0; i < 6; ++i) {
    together[0].push_back(step(a, of_a, batch));
    together[1].push_back(step(b, of_b, batch));
  }
  CHECK(together[0] == alone[0]);
  CHECK(together[1] == alone[1]);
}
