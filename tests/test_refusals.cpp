// SPDX-License-Identifier: Apache-2.0
// Programs that would train something else than was meant are refused, on every rank, in one sentence: a model laid
// over another mesh, an axis that nobody uses, ranks with different batches, settings or arguments, a step without
// finished gradients. And several models share a device.
#include <atomic>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/rms_norm.hpp>
#include <zeropp/parallel/parallelize.hpp>
#include <zeropp/train/clip.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

const TinyConfig config{.vocabulary = 64, .sequence = 16, .width = 24, .heads = 4, .layers = 2, .dropout = 0};
constexpr ThreadOptions within{.limit = std::chrono::seconds(20)};

/// Rows that depend on `seed`.
void fill(Batch& batch, int seed) {
  const Random random(1, RandomPurpose::data, static_cast<std::uint64_t>(seed), 0);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size())), labels(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(random.bits(i) % 64);
    labels[i] = static_cast<std::int32_t>((random.bits(i) + 7) % 64);
  }
  batch.fill(tokens, labels);
}

/// Runs body(comm) on ranks, and checks that each of them throws an E with these words. Ranks that are ended because
/// another was refused first are no failure of this: their sentence names it.
template <class E>
void refused(int ranks, const std::string& words, const std::function<void(const Comm&)>& body) {
  CAPTURE(words);
  std::atomic<int> said = 0, ended = 0;
  try {
    run_ranks(ranks, within, [&](Comm comm) {
      try {
        body(comm);
      } catch (const E& e) {
        if (std::string(e.what()).find(words) != std::string::npos) ++said;
        throw;
      } catch (...) {
        ++ended;
        throw;
      }
    });
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find(words) != std::string::npos);  // the first cause is the one that is reported
  }
  CHECK(said > 0);
  CHECK(said + ended == ranks);  // nobody trains on
}

template <class Model>
void steps(Model& model, int count, int seed, float rate = 1e-2f, float clip = 1) {
  FusedAdam adam{model};
  auto batch = Batch::on(model.device(), 4, config.sequence);
  fill(batch, seed);
  for (int i = 0; i < count; ++i) {
    model.train(batch);
    adam.step(rate, clip_by_global_norm(model, clip));
  }
}

}  // namespace

TEST_CASE("a model laid over another mesh than it is given") {
  refused<ConfigError>(2, "tensor ranks of another communicator than the model's, which has 1", [](const Comm& world) {
    Cpu cpu;
    const Mesh mesh{world, {.tensor = 2}};
    TensorParallel net{TensorOptions{.comm = mesh.tensor()}, Plain{config}};
    Sharded<TensorParallel<Plain>, Stage::gradients> model{world, cpu, std::move(net)};
  });
  refused<ConfigError>(4, "of another communicator than the model's, which has 2", [](const Comm& world) {
    Cpu cpu;
    const Mesh one{world, {.tensor = 2}},
        other{world, {.data = 2, .tensor = 2, .order = {Axis::data, Axis::tensor, Axis::pipeline, Axis::context}}};
    Sharded<Parallel<Plain>, Stage::none> model{one, cpu, parallelize(other, Plain{config})};
  });
  refused<ConfigError>(2, "PipelineStage has 2 stages on another communicator", [](const Comm& world) {
    Cpu cpu;
    const Mesh mesh{world, {.pipeline = 2}};
    PipelineStage<Plain> stage{{.comm = mesh.pipeline()}, Plain{config}};
    Sharded<PipelineStage<Plain>, Stage::none> model{world, cpu, std::move(stage)};
  });
}

TEST_CASE("an epsilon of Adam that makes 0 / 0 or nothing") {
  Cpu cpu;
  Sharded<Plain, Stage::none> model{Comm{}, cpu, Plain{config}};
  for (const double epsilon : {0.0, 1e-50, 1e-40, -1e-8, std::nan(""), 1e300 * 1e300})
    CHECK_THROWS_WITH_AS((FusedAdam{model, {.epsilon = static_cast<float>(epsilon)}}),
                         doctest::Contains("adam's epsilon must be finite and at least 1.1754944e-38"), ConfigError);
  FusedAdam least{model, {.epsilon = 2e-38f}};
}

TEST_CASE("an axis of the mesh that no layer uses") {
  refused<ConfigError>(2, "the mesh has 2 tensor ranks, and no layer of the model uses them", [](const Comm& world) {
    Cpu cpu;
    Sharded<Plain, Stage::gradients> model{Mesh{world, {.tensor = 2}}, cpu, Plain{config}};
  });
  refused<ConfigError>(2, "the mesh has 2 pipeline ranks, and the model is not cut into stages", [](const Comm& world) {
    Cpu cpu;
    Sharded<Plain, Stage::gradients> model{Mesh{world, {.pipeline = 2}}, cpu, Plain{config}};
  });
  // three axes, of which one is used
  refused<ConfigError>(8, "the mesh has 2 pipeline ranks", [](const Comm& world) {
    Cpu cpu;
    const Mesh mesh{world, {.data = 2, .tensor = 2, .pipeline = 2}};
    TensorParallel net{TensorOptions{.comm = mesh.tensor()}, Plain{config}};
    Sharded<TensorParallel<Plain>, Stage::gradients> model{mesh, cpu, std::move(net)};
  });
  // a layer without a rule works on a mesh without those axes
  run_ranks(2, within, [](Comm world) {
    Cpu cpu;
    Sharded<Plain, Stage::gradients> model{Mesh{world, {.data = 2}}, cpu, Plain{config}};
    steps(model, 1, world.rank());
  });
}

TEST_CASE("ranks of the tensor, pipeline and context axes with different batches") {
  for (auto [axes, ranks, axis] : {std::tuple{MeshOptions{.tensor = 2}, 2, "tensor"},
                                   {MeshOptions{.pipeline = 2}, 2, "pipeline"},
                                   {MeshOptions{.context = 2}, 2, "context"},
                                   {MeshOptions{.data = 1, .tensor = 2, .pipeline = 2, .context = 2}, 8, "context"}}) {
    const auto words = text(axis, " rank 1 was given another batch than ", axis, " rank 0");
    const auto run = [axes = axes](const Comm& world, auto change) {
      Cpu cpu;
      const Mesh mesh{world, axes};
      Sharded<Parallel<Plain>, Stage::gradients> model{mesh, cpu, parallelize(mesh, Plain{config})};
      auto batch = Batch::on(cpu, 4, config.sequence);
      fill(batch, 3);
      change(batch, world.rank(), cpu);
      model.train(batch);
    };
    refused<CommError>(ranks, words, [&](const Comm& world) {
      run(world, [](Batch& batch, int rank, Cpu&) { fill(batch, rank); });  // as a loader with the rank of the world would
    });
    refused<CommError>(
        ranks, words, [&](const Comm& world) {  // the last label alone, written after the batch was filled
          run(world, [](Batch& batch, int rank, Cpu&) { batch.labels.data()[batch.labels.size() - 1] = rank; });
        });
    refused<CommError>(ranks, words, [&](const Comm& world) {  // the same tokens in rows of another length
      run(world, [](Batch& batch, int rank, Cpu& cpu) {
        if (rank > 0) {
          auto other = Batch::on(cpu, 8, config.sequence / 2);
          std::ranges::copy(batch.tokens.span(), other.tokens.data());
          std::ranges::copy(batch.labels.span(), other.labels.data());
          batch = other;
        }
      });
    });
    run_ranks(ranks, within, [&](Comm world) { run(world, [](Batch&, int, Cpu&) {}); });
  }
}

TEST_CASE("clipping and a step without finished gradients") {
  for (auto stage : all_stages)
    run_ranks(2, within, [&](Comm world) {
      Cpu cpu;
      ShardedEngine<Plain> model{world, cpu, Plain{config}, stage};
      FusedAdam adam{model};
      auto batch = Batch::on(cpu, 4, config.sequence);
      fill(batch, world.rank());
      CHECK_THROWS_WITH_AS(clip_by_global_norm(model, 1),
                           doctest::Contains("clipping needs gradients, and there are none"), Error);
      CHECK_THROWS_WITH_AS(adam.step(1e-2f), doctest::Contains("the optimizer's step needs gradients"), Error);
      const auto backward = [&] {
        auto ctx = model.context({.loss_weight = 1.0 / 64, .labels = batch.labels});
        auto [loss, saved] = model.forward(ctx, batch.tokens);
        model.backward(ctx, 1.0f, std::move(saved));
      };
      backward();
      CHECK_THROWS_WITH_AS(clip_by_global_norm(model, 1), doctest::Contains("clipping needs finished gradients"),
                           Error);
      CHECK_THROWS_WITH_AS(adam.step(1e-2f), doctest::Contains("call model.finish_gradients() after the last backward"),
                           Error);
      model.finish_gradients();
      CHECK_THROWS_WITH_AS(model.finish_gradients(), doctest::Contains("the gradients are finished already"), Error);
      adam.step(1e-2f, clip_by_global_norm(model, 1));
      backward();  // of the next step
      CHECK_THROWS_WITH_AS(clip_by_global_norm(model, 1), doctest::Contains("needs finished gradients"), Error);
      CHECK_THROWS_WITH_AS(backward(), doctest::Contains("call model.begin_micro_batch(first, last) before each"),
                           Error);
      model.train(batch);  // begins anew
      CHECK_THROWS_WITH_AS(model.finish_gradients(), doctest::Contains("the gradients are finished already"), Error);
    });
}

TEST_CASE("a backward of one's own begins a step, whatever train() ran before it") {
  std::vector<double> norms;
  for (bool trained : {false, true})
    run_ranks(2, within, [&](Comm world) {
      Cpu cpu;
      ShardedEngine<Plain> model{world, cpu, Plain{config}, Stage::gradients};
      auto batch = Batch::on(cpu, 4, config.sequence);
      fill(batch, world.rank());
      if (trained) model.train(batch, {.micro_batches = 2});
      for (int halves : {1, 2}) {  // one after the other, the second in micro-batches
        for (int m = 0; m < halves; ++m) {
          if (halves > 1) model.begin_micro_batch(m == 0, m + 1 == halves);
          auto ctx = model.context({.loss_weight = 1.0 / 64, .labels = batch.labels});
          auto [loss, saved] = model.forward(ctx, batch.tokens);
          model.backward(ctx, 1.0f, std::move(saved));
        }
        model.finish_gradients();
        const auto norm = global_norm(model);
        if (world.rank() == 0) norms.push_back(norm);
      }
    });
  REQUIRE(norms.size() == 4);
  CHECK(norms[0] == norms[2]);
  CHECK(norms[1] == norms[3]);
  CHECK(norms[1] == doctest::Approx(2 * norms[0]));  // the same batch twice
}

TEST_CASE("a tensor rule that fills slices itself") {
  run_ranks(2, within, [](Comm world) {
    Cpu cpu;
    const Mesh mesh{world, {.tensor = 2}};
    auto net = parallelize(mesh, Plain{config});
    visit_parameters(net, [](Parameter& p) { p.tensor_group = nullptr; });  // as such a rule leaves it
    Sharded<Parallel<Plain>, Stage::gradients> model{mesh, cpu, std::move(net)};
    steps(model, 1, 3);
  });
}

TEST_CASE("ranks with different settings, over every axis, before the first step") {
  const auto build = [](const Comm& world, const MeshOptions& axes, const TinyConfig& c, const ShardedOptions& options,
                        const AdamOptions& adam_options) {
    Cpu cpu;
    const Mesh mesh{world, axes};
    Sharded<Parallel<Plain>, Stage::gradients> model{mesh, cpu, parallelize(mesh, Plain{c}), options};
    FusedAdam adam{model, adam_options};
  };
  for (const auto& axes : {MeshOptions{.data = 2}, MeshOptions{.tensor = 2}, MeshOptions{.pipeline = 2},
                           MeshOptions{.context = 2}, MeshOptions{.data = 2, .tensor = 2, .pipeline = 2}}) {
    const int ranks = axes.data == 2 && axes.tensor == 2 ? 8 : 2;
    const auto last = [&](const Comm& world) { return world.rank() == ranks - 1; };
    refused<CommError>(ranks, "has seed = 8, that one 7",
                       [&](const Comm& world) { build(world, axes, config, {.seed = last(world) ? 8u : 7u}, {}); });
    refused<CommError>(
        ranks, "has another optimizer than rank 0: it has weight_decay = 0.2, that one 0.1",
        [&](const Comm& world) { build(world, axes, config, {}, {.weight_decay = last(world) ? 0.2f : 0.1f}); });
    refused<CommError>(ranks, "it has epsilon = 1e-06, that one 1e-08", [&](const Comm& world) {
      build(world, axes, config, {}, {.epsilon = last(world) ? 1e-6f : 1e-8f});
    });
  }
  // what a layer holds beside its parameters; stages of a pipeline have other layers than each other
  for (const auto& axes : {MeshOptions{.data = 2}, MeshOptions{.tensor = 2}, MeshOptions{.context = 2}})
    refused<CommError>(2, "drops 0.5, that one", [&](const Comm& world) {
      auto c = config;
      c.dropout = world.rank() ? 0.5f : 0.25f;
      build(world, axes, c, {}, {});
    });
  refused<CommError>(2, "a layer with = epsilon 0.01, that one epsilon 1e-05", [](const Comm& world) {
    Cpu cpu;
    using Model = Sequential<GptEmbedding, RmsNorm, LmHead>;
    Sharded<Model, Stage::none> model{world, cpu,
                                      Model{GptEmbedding{{.vocabulary = 8, .width = 4}},
                                            RmsNorm{"n", 4, world.rank() ? 1e-2f : 1e-5f}, LmHead{"head", 8, 4}}};
  });
  refused<CommError>(2, "pipeline rank 1 built another model than pipeline rank 0", [&](const Comm& world) {
    auto c = config;
    c.vocabulary = world.rank() ? 32 : 64;
    build(world, {.pipeline = 2}, c, {}, {});
  });
  // settings of a program
  refused<CommError>(
      3, "rank 2 has other settings than rank 0: it has learning rate = 0.2, that one 0.1", [](const Comm& world) {
        expect_same_settings(world, {{"steps", "7"}, {"learning rate", world.rank() == 2 ? "0.2" : "0.1"}});
      });
  refused<CommError>(2, "rank 1 has other settings than rank 0: it lacks warm-up", [](const Comm& world) {
    SettingList settings{{"steps", "7"}};
    if (world.rank() == 0) settings.push_back({"warm-up", "3"});
    expect_same_settings(world, settings);
  });
}

TEST_CASE("ranks that clip to different norms, or step at different rates") {
  const auto words = "ranks of a model were given different arguments";
  for (const auto& axes : {MeshOptions{.data = 2}, MeshOptions{.tensor = 2}, MeshOptions{.pipeline = 2},
                           MeshOptions{.context = 2}, MeshOptions{.data = 2, .tensor = 2, .pipeline = 2}}) {
    const int ranks = axes.data == 2 && axes.tensor == 2 ? 8 : 2;
    const auto run = [&](const Comm& world, float rate, float clip, float loss_scale, std::int64_t labels = 0) {
      Cpu cpu;
      const Mesh mesh{world, axes};
      Sharded<Parallel<Plain>, Stage::gradients> model{mesh, cpu, parallelize(mesh, Plain{config})};
      FusedAdam adam{model};
      auto batch = Batch::on(cpu, 4, config.sequence);
      fill(batch, 1);
      batch.labels_in_step = labels;
      for (int i = 0; i < 2; ++i) {
        model.train(batch, {.loss_scale = loss_scale});
        adam.step(rate, clip_by_global_norm(model, clip));
      }
    };
    refused<CommError>(ranks, words, [&](const Comm& w) { run(w, 1e-2f, w.rank() == ranks - 1 ? 2 : 1, 1); });
    refused<CommError>(ranks, words, [&](const Comm& w) { run(w, w.rank() == ranks - 1 ? 2e-2f : 1e-2f, 1, 1); });
    refused<CommError>(ranks, words, [&](const Comm& w) { run(w, 1e-2f, 1, w.rank() == ranks - 1 ? 2 : 1); });
    refused<CommError>(ranks, words, [&](const Comm& w) { run(w, 1e-2f, 1, 1, w.rank() == ranks - 1 ? 63 : 64); });
    run_ranks(ranks, within, [&](Comm w) { run(w, 1e-2f, 1, 1); });
  }
  // Rates in equal steps: no rank has the mean of all numbers, by which it would take the others to agree with it.
  for (int digit = 1; digit < 9; ++digit)
    for (int step = 1; digit - step >= 0 && digit + step <= 9; ++step) {
      const auto number = [&](int d) { return Agreement::number_of(text("1 1 0.00", d, " 64")); };
      const auto at_end = [&](int d) { return Agreement::number_of(text("1 1 0.00", d)); };
      CHECK(number(digit - step) + number(digit + step) != 2 * number(digit));
      CHECK(at_end(digit - step) + at_end(digit + step) != 2 * at_end(digit));
    }
}

TEST_CASE("several models on one device, in turn and at once, with the bits that each has alone") {
  const auto losses = [](auto& model, int count) {
    std::vector<double> all;
    FusedAdam adam{model};
    auto batch = Batch::on(model.device(), 4, config.sequence);
    fill(batch, 2);
    for (int i = 0; i < count; ++i) {
      all.push_back(model.train(batch).mean());
      adam.step(1e-2f, clip_by_global_norm(model, 1));
    }
    return all;
  };
  const auto of = [&](std::int64_t width) {
    auto c = config;
    c.width = width;
    return Plain{c};
  };
  Cpu alone;
  std::vector<double> first, second;
  {
    Sharded<Plain, Stage::gradients> model{Comm{}, alone, of(24)};
    first = losses(model, 3);
  }
  {
    Sharded<Plain, Stage::gradients> model{Comm{}, alone, of(48)};  // after the other is gone
    second = losses(model, 3);
  }
  CHECK(first != second);

  Cpu cpu;
  Sharded<Plain, Stage::gradients> a{Comm{}, cpu, of(24)};
  Sharded<Plain, Stage::gradients> b{Comm{}, cpu, of(48)};
  FusedAdam of_a{a}, of_b{b};
  auto batch = Batch::on(cpu, 4, config.sequence);
  fill(batch, 2);
  for (std::size_t i = 0; i < 3; ++i) {  // the same shapes of batch, other requests for memory
    CHECK(a.train(batch).mean() == first[i]);
    CHECK(b.train(batch).mean() == second[i]);
    of_b.step(1e-2f, clip_by_global_norm(b, 1));
    of_a.step(1e-2f, clip_by_global_norm(a, 1));
  }
  CHECK(a.evaluate(batch).mean() != b.evaluate(batch).mean());

  // a stage against another in one program
  Sharded<Plain, Stage::parameters> c{Comm{}, cpu, of(24)};
  CHECK(losses(c, 3) == first);
}

TEST_CASE("another device or precision takes the place of Cpu and Fp32, and nothing else changes") {
  const auto train = [](auto&& device) {
    auto model = sharded<Stage::gradients>(dry_comm(0, 1), device, Plain{config});
    static_assert(std::is_same_v<typename decltype(model)::Device, std::remove_cvref_t<decltype(device)>>);
    steps(model, 1, 1);
    return device.pool().planned();
  };
  CHECK(train(Cpu{}) == train(Dry{}));
  Cpu cpu;
  auto half = sharded<Stage::gradients, Bf16>(Comm{}, cpu, Plain{config});
  static_assert(std::is_same_v<decltype(half)::Precision, Bf16>);
  steps(half, 1, 1);
}
