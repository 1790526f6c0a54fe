// SPDX-License-Identifier: Apache-2.0
// Sharded at the edges: refused models, errors on the way, gradients that are not finite, more ranks than elements,
// ties, a loop of the user's own.
#include <doctest/doctest.h>

#include <limits>

#include <zeropp/comm/threads/threads.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

constexpr ThreadOptions within{.limit = std::chrono::seconds(20)};

template <class M>
Batch constant_batch(M& model, std::int64_t rows, std::int64_t sequence, std::int32_t token = 3) {
  auto batch = Batch::on(model.device(), rows, sequence);
  std::fill_n(batch.tokens.data(), batch.tokens.size(), token);
  std::fill_n(batch.labels.data(), batch.labels.size(), 4);
  return batch;
}

/// y = scale · x with one parameter; throws on demand; its gradient may be poisoned on one rank.
struct Scale {
  Parameter scale{.name = "scale", .shape = {1}, .init = Init::constant(2)};
  bool fail_forward = false, fail_backward = false;
  float poison = 0;

  auto parameters() { return std::array{&scale}; }
  template <class C, class X>
  auto forward(C& ctx, X x) {
    if (fail_forward) throw Error("forward fails");
    auto y = ctx.make_like(x);
    for (std::int64_t i = 0; i < x.size(); ++i) y.data()[i] = ctx.value(scale)[0] * x.data()[i];
    return Forward{y, x};
  }
  template <class C, class T>
  auto backward(C& ctx, T dy, T x) {
    if (fail_backward) throw Error("backward fails");
    auto dx = ctx.make_like(dy);
    for (std::int64_t i = 0; i < x.size(); ++i) {
      ctx.gradient(scale)[0] += dy.data()[i] * x.data()[i] + poison;
      dx.data()[i] = ctx.value(scale)[0] * dy.data()[i];
    }
    return dx;
  }
};
using ScaledGpt = Sequential<GptEmbedding, Scale, LayerNorm, LmHead>;
ScaledGpt scaled_gpt() {
  return {GptEmbedding{{.vocabulary = 11, .sequence = 6, .width = 8}}, Scale{}, LayerNorm{"ln_f", 8},
          LmHead{"lm_head", 11, 8, {.tied_to = "wte.weight"}}};
}

}  // namespace

TEST_CASE("the gradient of a parameter that no backward touches is zero at every stage") {
  struct Idle : Scale {
    Parameter unused{.name = "unused", .shape = {5}};
    auto parameters() { return std::array{&scale, &unused}; }
  };
  using Model = Sequential<GptEmbedding, Idle, LayerNorm, LmHead>;
  const auto check = [](auto& model) {
    Batch batch = Batch::on(model.device(), 2, 6);
    const std::vector<std::int32_t> some(12, 3);
    batch.fill(some, some);
    for (int step = 0; step < 2; ++step) {
      model.train(batch);
      bool found = false;
      for (auto& unit : model.units())
        for (auto* p : unit.parameters())
          if (p->name == "unused") {
            found = true;
            for (float g : unit.shard_gradients(*p)) CHECK(g == 0);
          }
      CHECK(found);
    }
  };
  run_ranks(2, [&](Comm comm) {
    Cpu cpu, other;
    const auto model = [] {
      return Model{GptEmbedding{{.vocabulary = 11, .sequence = 6, .width = 8}}, Idle{}, LayerNorm{"ln_f", 8},
                   LmHead{"lm_head", 11, 8}};
    };
    Sharded<Model, Stage::none> whole{comm, cpu, model()};
    check(whole);
    Sharded<Model, Stage::parameters> sharded{comm, other, model()};
    check(sharded);
  });
}

TEST_CASE("two parameters of one name, ties to nothing and ties of another shape are refused") {
  Cpu cpu;
  using Two = Sequential<LayerNorm, LayerNorm>;
  CHECK_THROWS_WITH_AS((Sharded<Two, Stage::none>{Comm{}, cpu, Two{LayerNorm{"ln", 8}, LayerNorm{"ln", 8}}}),
                       doctest::Contains("two parameters are called ln.weight"), ConfigError);
  using Tied = Sequential<LayerNorm, LmHead>;
  auto head = [](const char* to) { return Tied{LayerNorm{"ln", 8}, LmHead{"head", 11, 8, {.tied_to = to}}}; };
  CHECK_THROWS_WITH_AS((Sharded<Tied, Stage::none>{Comm{}, cpu, head("wte.weight")}),
                       doctest::Contains("tied to wte.weight, which no layer declares"), ConfigError);
  CHECK_THROWS_WITH_AS((Sharded<Tied, Stage::none>{Comm{}, cpu, head("ln.weight")}),
                       doctest::Contains("tied shapes must be equal"), ConfigError);
  struct Twice : Sequential<Residual<LayerNorm, Dropout>, Recompute<Residual<LayerNorm, Dropout>>> {
    Twice() : Sequential{{LayerNorm{"a", 8}, Dropout{"drop", 0.1f}}, {{LayerNorm{"b", 8}, Dropout{"drop", 0.1f}}}} {}
  };
  CHECK_THROWS_WITH_AS((Sharded<Twice, Stage::none>{Comm{}, cpu, Twice{}}),
                       doctest::Contains("two layers that draw random numbers are called drop"), ConfigError);
  CHECK(cpu.pool().allocated() == 0);
}

TEST_CASE("ranks that build different models are refused") {
  auto build = [](Comm comm) {
    Cpu cpu;
    using One = Sequential<LayerNorm>;
    Sharded<One, Stage::gradients> model{comm, cpu, One{LayerNorm{"ln", comm.rank() == 2 ? 16 : 8}}};
  };
  CHECK_THROWS_WITH_AS(run_ranks(3, within, build), doctest::Contains("rank 2 built another model than rank 0"),
                       CommError);
}

TEST_CASE("a micro-batch count or prefetch that cannot be is refused") {
  Cpu cpu;
  CHECK_THROWS_AS((Sharded<ScaledGpt, Stage::none>{Comm{}, cpu, scaled_gpt(), {.prefetch = -1}}), ConfigError);
  Sharded<ScaledGpt, Stage::none> model{Comm{}, cpu, scaled_gpt()};
  auto batch = constant_batch(model, 2, 6);
  CHECK_THROWS_AS(model.train(batch, {.micro_batches = 0}), ConfigError);
}

TEST_CASE("after an error inside a layer the model trains on as if nothing had been") {
  auto losses = [](bool disturbed, auto stage) {
    Cpu cpu;
    Sharded<ScaledGpt, decltype(stage)::value> model{Comm{}, cpu, scaled_gpt()};
    FusedAdam adam{model};
    auto batch = constant_batch(model, 2, 6);
    auto& scale = std::get<1>(model.layer().children);
    std::vector<double> all;
    for (int step = 0; step < 4; ++step) {
      if (disturbed && step > 0) {
        (step % 2 ? scale.fail_forward : scale.fail_backward) = true;
        CHECK_THROWS_AS(model.train(batch, {.micro_batches = 2}), Error);
        scale.fail_forward = scale.fail_backward = false;
        auto wrong = constant_batch(model, 2, 6, 11);
        CHECK_THROWS_AS(model.train(wrong, {.micro_batches = 2}), DataError);
      }
      all.push_back(model.train(batch, {.micro_batches = 2}).mean());
      adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
    }
    return all;
  };
  CHECK(losses(true, std::integral_constant<Stage, Stage::none>{}) ==
        losses(false, std::integral_constant<Stage, Stage::none>{}));
  CHECK(losses(true, std::integral_constant<Stage, Stage::parameters>{}) ==
        losses(false, std::integral_constant<Stage, Stage::parameters>{}));
}

TEST_CASE("an error in one rank ends all, and the first cause is the one reported") {
  auto body = [](Comm comm) {
    Cpu cpu;
    Sharded<ScaledGpt, Stage::parameters> model{comm, cpu, scaled_gpt()};
    std::get<1>(model.layer().children).fail_backward = comm.rank() == 1;
    auto batch = constant_batch(model, 2, 6);
    model.train(batch);
  };
  CHECK_THROWS_WITH_AS(run_ranks(4, within, body), doctest::Contains("backward fails"), Error);
}

TEST_CASE("a gradient that is not finite on one rank makes all ranks skip the step") {
  for (float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    run_ranks(3, within, [&](Comm comm) {
      Cpu cpu;
      Sharded<ScaledGpt, Stage::gradients> model{comm, cpu, scaled_gpt()};
      FusedAdam adam{model};
      auto batch = constant_batch(model, 2, 6);
      auto& scale = std::get<1>(model.layer().children);
      if (comm.rank() == 1) scale.poison = poison;
      const auto before = model.evaluate(batch).mean();
      model.train(batch);
      const auto clip = clip_by_global_norm(model, 1.0f);
      CHECK(!clip.finite());
      CHECK(!adam.step(1e-2f, clip));
      CHECK(adam.skipped() == 1);
      CHECK(adam.steps() == 0);
      CHECK(model.evaluate(batch).mean() == before);
      scale.poison = 0;
      model.train(batch);
      CHECK(adam.step(1e-2f, clip_by_global_norm(model, 1.0f)));
      CHECK(model.evaluate(batch).mean() < before);
    });
}

TEST_CASE("more ranks than elements: the unit of one parameter over eight ranks") {
  std::vector<double> first;
  for (auto stage : all_stages) {
    std::vector<double> losses(8);
    run_ranks(8, within, [&](Comm comm) {
      auto run = [&]<Stage S>() {
        Cpu cpu;
        Sharded<ScaledGpt, S> model{comm, cpu, scaled_gpt()};
        CHECK(model.units()[2].size() == 1);
        CHECK(model.units()[2].padded() == 8);
        FusedAdam adam{model};
        auto batch = constant_batch(model, comm.rank() < 3, 6);  // and only three rows
        for (int step = 0; step < 3; ++step) {
          losses[static_cast<std::size_t>(comm.rank())] = model.train(batch).mean();
          adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
        }
      };
      switch (stage) {
        case Stage::none: return run.template operator()<Stage::none>();
        case Stage::optimizer_states: return run.template operator()<Stage::optimizer_states>();
        case Stage::gradients: return run.template operator()<Stage::gradients>();
        case Stage::parameters: return run.template operator()<Stage::parameters>();
      }
    });
    for (double loss : losses) CHECK(loss == losses[0]);
    if (first.empty()) first = losses;
    CHECK(losses == first);
  }
}

TEST_CASE("an uneven batch weighs every label once: the loss of 3 rows over 2 ranks is that of 3 rows on one") {
  auto loss_of = [](int ranks) {
    double loss = 0;
    run_ranks(ranks, within, [&](Comm comm) {
      Cpu cpu;
      Sharded<ScaledGpt, Stage::none> model{comm, cpu, scaled_gpt()};
      const auto begin = part_begin(3, comm.rank(), ranks), end = part_begin(3, comm.rank() + 1, ranks);
      auto batch = Batch::on(cpu, end - begin, 6);
      for (std::int64_t i = 0; i < batch.tokens.size(); ++i) {
        batch.tokens.data()[i] = static_cast<std::int32_t>((begin * 6 + i) % 11);
        batch.labels.data()[i] = (begin * 6 + i) % 5 ? static_cast<std::int32_t>((begin * 6 + i) % 7) : -1;
      }
      FusedAdam adam{model};
      for (int step = 0; step < 3; ++step) {
        const auto now = model.train(batch);
        if (comm.rank() == 0) loss = now.mean();
        CHECK(now.count() == 14);
        adam.step(1e-2f);
      }
    });
    return loss;
  };
  CHECK(loss_of(2) == doctest::Approx(loss_of(1)).epsilon(1e-6));
  CHECK(loss_of(3) == doctest::Approx(loss_of(1)).epsilon(1e-6));
}

TEST_CASE("a loop of the user's own: forward, backward, finish_gradients, step") {
  auto train = [](auto stage) {
    std::vector<float> losses;
    run_ranks(2, within, [&](Comm comm) {
      Cpu cpu;
      using Net = Sequential<Scale, LayerNorm>;
      Sharded<Net, decltype(stage)::value> model{comm, cpu, Net{Scale{}, LayerNorm{"ln", 4}}};
      FusedAdam adam{model, {.weight_decay = 0}};
      for (int step = 0; step < 20; ++step) {
        auto ctx = model.context();
        auto x = ctx.template make<2>({2, 4});
        for (std::int64_t i = 0; i < 8; ++i) x.data()[i] = static_cast<float>((i * 7 + comm.rank()) % 5);
        auto [y, saved] = model.forward(ctx, x);
        auto dy = ctx.make_like(y);
        float loss = 0;
        for (std::int64_t i = 0; i < 8; ++i) {
          const float error = y.data()[i] - 0.5f;
          loss += error * error;
          dy.data()[i] = 2 * error;
        }
        model.backward(ctx, dy, std::move(saved));
        model.finish_gradients();
        adam.step(0.05f, clip_by_global_norm(model, 0));
        if (comm.rank() == 0) losses.push_back(loss);
      }
    });
    CHECK(losses.back() < losses.front() / 4);
    return losses;
  };
  CHECK(train(std::integral_constant<Stage, Stage::none>{}) ==
        train(std::integral_constant<Stage, Stage::parameters>{}));
}

TEST_CASE("logits are those the loss is computed from") {
  Cpu cpu;
  Sharded<ScaledGpt, Stage::parameters> model{Comm{}, cpu, scaled_gpt()};
  auto batch = constant_batch(model, 1, 6);
  std::vector<std::int64_t> rows{0, 1, 2, 3, 4, 5};
  std::vector<float> logits(6 * 11);
  model.logits(batch.tokens, rows, logits);
  double loss = 0;
  for (int r = 0; r < 6; ++r) {
    double sum = 0;
    for (int v = 0; v < 11; ++v) sum += std::exp(logits[static_cast<std::size_t>(r * 11 + v)]);
    loss += std::log(sum) - logits[static_cast<std::size_t>(r * 11 + 4)];
  }
  CHECK(model.evaluate(batch).mean() == doctest::Approx(loss / 6).epsilon(1e-6));
}

TEST_CASE("a step gathers once before stage 3: gradients at stage 0, weights at stages 1 and 2; at stage 3 per use") {
  constexpr int ranks = 2;
  const auto gathered = []<Stage S>() {
    std::int64_t bytes = 0;
    run_ranks(ranks, within, [&](Comm comm) {
      Cpu cpu;
      Sharded<ScaledGpt, S> model{comm, cpu, scaled_gpt()};
      FusedAdam adam{model};
      auto batch = constant_batch(model, 2, 6);
      const auto before = comm.traffic().bytes_of(Collective::all_gather);
      model.train(batch);
      adam.step(1e-2f, clip_by_global_norm(model, 1.0f));
      if (comm.rank() == 0) {
        bytes = comm.traffic().bytes_of(Collective::all_gather) - before;
        std::int64_t padded = 0;
        for (auto& unit : model.units()) padded += unit.padded();
        if (S < Stage::parameters) CHECK(bytes == 4 * padded * (ranks - 1) / ranks);
      }
    });
    return bytes;
  };
  const auto once = gathered.operator()<Stage::none>();
  CHECK(gathered.operator()<Stage::optimizer_states>() == once);
  CHECK(gathered.operator()<Stage::gradients>() == once);
  CHECK(gathered.operator()<Stage::parameters>() > once);
}
