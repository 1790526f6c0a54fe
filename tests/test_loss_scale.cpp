// SPDX-License-Identifier: Apache-2.0
// The loss scale: how it adapts; that it changes no bit where nothing overflows; that a step that overflows is left out
// by all ranks together and leaves no trace; that training in fp16 stays near fp32; that it resumes where it stood.
#include <doctest/doctest.h>

#include <cmath>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/train/loss_scale.hpp>

#include "support/checkpoints.hpp"
#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

const ThreadOptions limit{.limit = std::chrono::seconds(60)};

/// A batch of the tiny GPT that depends on the step alone.
template <class D>
Batch batch_of(D& device, const Comm& data, int step, const RunOptions& o) {
  const auto begin = part_begin(o.rows, data.rank(), data.size()),
             end = part_begin(o.rows, data.rank() + 1, data.size());
  auto batch = Batch::on(device, end - begin, o.config.sequence);
  batch.first_sample = begin;
  const Random random(5, RandomPurpose::test, 0, static_cast<std::uint64_t>(step));
  const auto vocabulary = static_cast<std::uint32_t>(o.config.vocabulary);
  for (std::int64_t i = 0; i < batch.tokens.size(); ++i) {
    const auto bits = random.bits(static_cast<std::uint64_t>(begin * o.config.sequence + i));
    batch.tokens.data()[i] = static_cast<std::int32_t>(bits % vocabulary);
    batch.labels.data()[i] = static_cast<std::int32_t>((bits + 1) % vocabulary);
  }
  return batch;
}

/// A model with its optimizer and its scaler on one rank of a mesh.
template <class P>
struct TrainingOf {
  using Split = TensorParallel<Plain>;
  RunOptions o;
  Mesh mesh;
  Cpu device;
  ShardedEngine<PipelineStage<Split>, P> model;
  FusedAdam<ShardedState<P, Cpu>> adam;
  LossScaler scaler;
  int step = 0;
  double loss = 0, norm = 0;

  TrainingOf(Stage stage, const Comm& world, const Layout& layout, const RunOptions& options, LossScaleOptions scale)
      : o(options),
        mesh(world, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline}),
        model(mesh, device,
              PipelineStage<Split>{{.comm = mesh.pipeline(), .schedule = layout.schedule, .width = o.config.width},
                                   Split{{.comm = mesh.tensor()}, Plain{o.config}}},
              stage),
        adam(model),
        scaler(scale) {}

  bool train() {
    const auto batch = batch_of(device, mesh.data(), step++, o);
    loss = model.train(batch, {.micro_batches = o.micro_batches, .loss_scale = scaler.scale()}).mean();
    const auto clip = clip_by_global_norm(model, 1.0f);
    norm = clip.norm();
    const bool done = adam.step(3e-3f, clip);
    scaler.update(done);
    return done;
  }
  /// The bits of everything that a step changes, on this rank.
  std::string bits() {
    std::string out = text(model.step(), " ", adam.steps(), " ");
    const auto put = [&](auto span) { out.append(reinterpret_cast<const char*>(span.data()), span.size_bytes()); };
    for (std::size_t u = 0; u < model.units().size(); ++u) {
      auto& unit = model.units()[u];
      put(unit.weights()), put(unit.masters()), put(adam.slot(0, u)), put(adam.slot(1, u));
    }
    return out;
  }
};

template <class P, Stage S = Stage::gradients>
struct Training : TrainingOf<P> {
  Training(const Comm& world, const Layout& layout, const RunOptions& options, LossScaleOptions scale)
      : TrainingOf<P>(S, world, layout, options, scale) {}
};

std::vector<float> scales_after(LossScaler scaler, const std::string& steps) {  // 'x': one that overflows
  std::vector<float> out;
  for (char step : steps) {
    scaler.update(step != 'x');
    out.push_back(scaler.scale());
  }
  return out;
}

}  // namespace

TEST_CASE("a scale adapts as DeepSpeed's: it halves once the hysteresis is used up, and doubles after a window") {
  using Scales = std::vector<float>;
  const LossScaler eager{{.initial = 8, .window = 3, .hysteresis = 1, .minimum = 1}};
  CHECK(scales_after(eager, "...") == Scales{8, 8, 16});
  CHECK(scales_after(eager, "......") == Scales{8, 8, 16, 16, 16, 32});
  CHECK(scales_after(eager, "x..x....") == Scales{4, 4, 4, 2, 2, 2, 4, 4});  // an overflow begins a new window
  const LossScaler patient{{.initial = 8, .window = 3, .hysteresis = 2, .minimum = 1}};
  CHECK(scales_after(patient, "x.x.x") == Scales{8, 8, 4, 4, 2});        // forgives one, and then none
  CHECK(scales_after(patient, "x...xx") == Scales{8, 8, 8, 16, 16, 8});  // until it has doubled
  LossScaleOptions renewed{.initial = 8, .window = 30, .hysteresis = 2, .minimum = 1, .consecutive_hysteresis = true};
  CHECK(scales_after(LossScaler{renewed}, "x.x.xx") == Scales{8, 8, 8, 8, 8, 4});  // two in a row halve it
  CHECK(LossScaler{}.scale() == 65536);
  CHECK(scales_after(LossScaler{}, "xx") == Scales{65536, 32768});
  CHECK(LossScaler{}.state() == LossScaleState{65536, 0, 2});
}

TEST_CASE("at the minimum an overflow ends the run; a fixed scale stays; what cannot be is refused") {
  LossScaler low{{.initial = 2, .hysteresis = 1, .minimum = 2}};
  low.update(true);
  CHECK_THROWS_WITH_AS(low.update(false), doctest::Contains("overflow at the minimum of the loss scale, 2"), Error);
  LossScaler fixed{{.fixed = 128}};
  CHECK(scales_after(fixed, "xxx...") == std::vector<float>(6, 128.0f));
  CHECK(!fixed.adapts());
  CHECK(!fixed.state());
  fixed.set_state(LossScaleState{4, 1, 1});
  CHECK(fixed.scale() == 128);
  LossScaler high{{.initial = 0x1p126f, .window = 1}};
  high.update(true);
  CHECK(high.scale() == 0x1p126f);
  for (LossScaleOptions wrong :
       {LossScaleOptions{.fixed = 100}, LossScaleOptions{.fixed = -2}, LossScaleOptions{.initial = 3},
        LossScaleOptions{.initial = INFINITY}, LossScaleOptions{.minimum = 0}, LossScaleOptions{.minimum = 131072},
        LossScaleOptions{.window = 0}, LossScaleOptions{.hysteresis = 0}})
    CHECK_THROWS_AS(LossScaler{wrong}, ConfigError);
  LossScaler any;
  CHECK_THROWS_AS(any.set_state(LossScaleState{3, 0, 1}), ConfigError);
  CHECK_THROWS_AS(any.set_state(LossScaleState{4, -1, 1}), ConfigError);
  any.set_state({});
  CHECK(any.scale() == 65536);
}

TEST_CASE("in float a scale changes no bit: gradients are powers of two larger, losses, norms and steps the same") {
  const auto run = [](float scale, Layout layout) {
    std::string out;
    run_ranks(layout.ranks(), limit, [&](Comm comm) {
      Training<Fp32> t(comm, layout, mesh_options(), {.fixed = scale});
      for (int i = 0; i < 3; ++i) CHECK(t.train());
      CHECK(t.model.loss_scale() == scale);
      if (comm.rank() == 0) out = t.bits() + text(t.loss, " ", t.norm);
    });
    return out;
  };
  for (const auto& layout : {Layout{}, Layout{.data = 2}, Layout{.tensor = 2}, Layout{.tensor = 2, .pipeline = 2}}) {
    const auto base = run(1, layout);
    CHECK(run(65536, layout) == base);
    CHECK(run(0x1p-20f, layout) == base);
  }
  Training<Fp32> one(Comm{}, {}, mesh_options(), {.fixed = 1}), scaled(Comm{}, {}, mesh_options(), {.fixed = 1024});
  one.train(), scaled.train();
  std::size_t wrong = 0, seen = 0;
  for (std::size_t u = 0; u < one.model.units().size(); ++u) {
    const auto g = one.model.units()[u].gradients(), h = scaled.model.units()[u].gradients();
    for (std::size_t i = 0; i < g.size(); ++i) wrong += h[i] != 1024 * g[i], seen += g[i] != 0;
  }
  CHECK(wrong == 0);
  CHECK(seen > 1000);
  CHECK_THROWS_AS(one.model.train(batch_of(one.device, Comm{}, 0, one.o), {.loss_scale = 0}), ConfigError);
}

TEST_CASE("a step that overflows is left out by every rank and leaves no trace; the scale halves; training goes on") {
  for (const auto& layout : {Layout{.data = 3}, Layout{.data = 2, .tensor = 2}, Layout{.data = 2, .pipeline = 2},
                             Layout{.tensor = 2, .pipeline = 2}})
    run_ranks(layout.ranks(), limit, [&](Comm comm) {
      Training<Fp16> t(comm, layout, mesh_options(), {.initial = 0x1p60f, .hysteresis = 1});
      const auto before = t.bits();
      REQUIRE(!t.train());
      CHECK(t.bits() == before);
      CHECK(t.adam.skipped() == 1);
      CHECK(t.scaler.scale() == 0x1p59f);
      CHECK(!std::isfinite(t.norm));
      CHECK(t.loss == doctest::Approx(std::log(64.0)).epsilon(0.05));  // of the forward alone: right all the same
      int skipped = 1;
      while (skipped < 60 && !t.train()) ++skipped;
      CHECK(skipped > 20);
      CHECK(skipped < 60);
      CHECK(t.bits() != before);
      for (int i = 0; i < 3; ++i) CHECK(t.train());
      CHECK(t.adam.steps() == 4);
      CHECK(std::isfinite(t.norm));
      CHECK(t.scaler.scale() == std::ldexp(1.0f, 60 - skipped));
    });
}

namespace {

/// Losses of training in P, the same on every rank.
template <class P, Stage S = Stage::gradients>
std::vector<double> losses(const Layout& layout, const RunOptions& o, LossScaleOptions scale) {
  std::vector<double> out;
  run_ranks(layout.ranks(), limit, [&](Comm comm) {
    Training<P, S> t(comm, layout, o, scale);
    std::vector<double> mine;
    while (t.step < o.steps) {
      CHECK(t.train());
      mine.push_back(t.loss);
    }
    if (comm.rank() == 0) out = mine;
  });
  return out;
}

double worst(const std::vector<double>& a, const std::vector<double>& b) {
  double far = 0;
  for (std::size_t i = 0; i < a.size(); ++i) far = std::max(far, std::abs(a[i] - b[i]) / b[i]);
  return far;
}

}  // namespace

TEST_CASE("training in fp16 follows fp32, on one rank and on meshes") {
  auto o = mesh_options();
  o.steps = 60;
  const LossScaleOptions scale{.initial = 4096};
  const auto exact = losses<Fp32>({}, o, {.fixed = 1});
  const auto one = losses<Fp16>({}, o, scale);
  MESSAGE("loss " << exact.back() << " after 60 steps; fp16 at most " << worst(one, exact) << " apart");
  CHECK(exact.back() < 0.8 * exact.front());
  CHECK(one != exact);
  CHECK(worst(one, exact) < 0.01);
  CHECK(worst(losses<Fp16>({}, o, {.fixed = 1}), exact) < 0.05);  // without a scaler: plain training in f16
  o.steps = 8;
  for (const auto& layout : {Layout{.data = 2}, Layout{.data = 2, .tensor = 2}, Layout{.tensor = 2, .pipeline = 2}}) {
    const auto mesh = losses<Fp16>(layout, o, scale);
    CHECK(worst(mesh, {exact.begin(), exact.begin() + 8}) < 0.01);
    CHECK(losses<Fp16, Stage::none>(layout, o, scale) == mesh);
    CHECK(losses<Fp16, Stage::parameters>(layout, o, scale) == mesh);
  }
}

TEST_CASE("a run resumed within a window goes on with the same bits, and its scale grows when it would have") {
  const Folder folder;
  const LossScaleOptions scale{.initial = 1024, .window = 5};
  run_ranks(2, limit, [&](Comm comm) {
    Training<Fp16> whole(comm, {.data = 2}, mesh_options(), scale);
    Checkpoints store{comm, folder.path()};
    whole.scaler.update(false);  // a hysteresis that is used up is kept too
    for (int i = 0; i < 3; ++i) whole.train();
    store.save(whole.model, whole.adam, {.step = 3, .loss_scale = whole.scaler.state()});
    for (int i = 0; i < 3; ++i) whole.train();

    Training<Fp16> resumed(comm, {.data = 2}, mesh_options(), scale);
    const auto found = store.resume(resumed.model, resumed.adam);
    REQUIRE(found);
    REQUIRE(found->loss_scale);
    CHECK(*found->loss_scale == LossScaleState{1024, 3, 1});
    resumed.scaler.set_state(found->loss_scale);
    resumed.step = 3;
    for (int i = 0; i < 3; ++i) resumed.train();
    CHECK(resumed.bits() == whole.bits());
    CHECK(resumed.loss == whole.loss);
    CHECK(resumed.scaler.scale() == 2048);
    CHECK(resumed.scaler.state() == whole.scaler.state());
    store.save(resumed.model, resumed.adam, {.step = 6});
    CHECK(!store.resume(resumed.model, resumed.adam)->loss_scale);  // none was given
  });
}
