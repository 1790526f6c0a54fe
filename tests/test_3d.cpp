// SPDX-License-Identifier: Apache-2.0
// Tensor x pipeline x data, with every stage of ZeRO: for each mesh the same bytes over stages, recompute and
// schedules; over meshes the same losses up to the order of sums.
#include <doctest/doctest.h>

#include <cmath>
#include <mutex>

#include <zeropp/comm/thread.hpp>
#include <zeropp/parallel/tensor_parallel.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

struct Layout {
  int data = 1, tensor = 1, pipeline = 1;
  bool sequence = false;
  PipelineKind schedule = PipelineKind::one_forward_one_backward;
  int chunks = 1;
};

RunOptions options() {
  RunOptions o{.rows = 8, .micro_batches = 4, .steps = 4};
  o.config = {.vocabulary = 64, .context = 12, .width = 24, .heads = 4, .layers = 4};
  return o;
}

/// The bytes of losses and norms of each step, the same on every rank.
template <class G, Stage S, class P>
std::string steps_of(const Layout& layout, const RunOptions& o) {
  std::string out;
  std::mutex mutex;
  run_ranks(layout.data * layout.tensor * layout.pipeline, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    Cpu device;
    const Mesh mesh{comm, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline}};
    using Split = TensorParallel<G>;
    const PipelineOptions pipeline{.comm = mesh.pipeline(),
                                   .schedule = layout.schedule,
                                   .chunks = layout.chunks,
                                   .width = o.config.width,
                                   .parts_of_context = layout.sequence ? layout.tensor : 1};
    PipelineStage<Split> stage{pipeline, Split{{.comm = mesh.tensor(), .sequence = layout.sequence}, G{o.config}}};
    Sharded<PipelineStage<Split>, S, P> model{mesh, device, std::move(stage)};
    auto mine = record(model, mesh.data(), o);
    const std::lock_guard lock(mutex);
    if (out.empty()) out = mine.steps;
    CHECK(out == mine.steps);
  });
  return out;
}

template <class G, class P = Fp32>
std::string steps_of(Stage stage, const Layout& layout, const RunOptions& o) {
  switch (stage) {
    case Stage::none: return steps_of<G, Stage::none, P>(layout, o);
    case Stage::optimizer_states: return steps_of<G, Stage::optimizer_states, P>(layout, o);
    case Stage::gradients: return steps_of<G, Stage::gradients, P>(layout, o);
    case Stage::parameters: return steps_of<G, Stage::parameters, P>(layout, o);
  }
  return {};
}

/// The greatest relative difference of losses and norms.
double apart(const std::string& a, const std::string& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t at = 0; at < a.size(); at += sizeof(double)) {
    double x, y;
    std::memcpy(&x, a.data() + at, sizeof x);
    std::memcpy(&y, b.data() + at, sizeof y);
    worst = std::max(worst, std::abs(x - y) / std::abs(y));
  }
  return worst;
}

}  // namespace

TEST_CASE("each mesh of up to eight ranks: the same bytes at every stage, and the losses of one rank") {
  const auto o = options();
  const auto one = steps_of<Plain>(Stage::none, {}, o);
  for (int tensor : {1, 2, 4})
    for (int pipeline : {1, 2, 4})
      for (int data : {1, 2, 4}) {
        if (tensor * pipeline * data > 8) continue;
        CAPTURE(tensor);
        CAPTURE(pipeline);
        CAPTURE(data);
        const Layout layout{.data = data, .tensor = tensor, .pipeline = pipeline};
        const auto base = steps_of<Plain>(Stage::none, layout, o);
        for (auto stage : {Stage::optimizer_states, Stage::gradients, Stage::parameters})
          CHECK(steps_of<Plain>(stage, layout, o) == base);
        CHECK(steps_of<Recomputed>(Stage::parameters, layout, o) == base);
        // sums of activations over tensor ranks, and of gradients over data ranks, are in another order than on one
        CHECK(apart(base, one) < 1e-5);
      }
}

TEST_CASE("a pipeline of tensor-parallel stages has the bytes of tensor-parallel ranks without one") {
  const auto o = options();
  for (bool sequence : {false, true}) {
    const auto flat = steps_of<Plain>(Stage::gradients, {.data = 2, .tensor = 2, .sequence = sequence}, o);
    for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1},
                                {PipelineKind::interleaved, 2},
                                {PipelineKind::zb_h1, 1},
                                {PipelineKind::zb_v, 2}})
      CHECK(steps_of<Recomputed>(
                Stage::parameters,
                {.data = 2, .tensor = 2, .pipeline = 2, .sequence = sequence, .schedule = kind, .chunks = chunks},
                o) == flat);
  }
}

TEST_CASE("in double, tensor ranks agree with one to 1e-12, with and without a shared sequence") {
  const auto o = options();
  const auto one = steps_of<Plain, Fp64>(Stage::none, {}, o);
  for (int tensor : {2, 4})
    for (bool sequence : {false, true})
      for (int pipeline : {1, 2}) {
        CAPTURE(tensor);
        CAPTURE(sequence);
        CAPTURE(pipeline);
        CHECK(apart(steps_of<Plain, Fp64>(Stage::parameters,
                                          {.tensor = tensor, .pipeline = pipeline, .sequence = sequence}, o),
                    one) < 1e-12);
      }
}
