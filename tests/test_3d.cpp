// SPDX-License-Identifier: Apache-2.0
// Tensor x pipeline x data x context, with every stage of ZeRO: for each mesh the same bytes over stages, recompute and
// schedules; over meshes the same losses up to the order of sums.
#include <doctest/doctest.h>

#include <mutex>

#include <zeropp/comm/threads/threads.hpp>

#include "support/apart.hpp"
#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

/// The bytes of losses and norms of each step, the same on every rank.
template <class G, class P = Fp32>
std::string steps_of(Stage stage, const Layout& layout, const RunOptions& o) {
  std::string out;
  std::mutex mutex;
  run_ranks(layout.ranks(), {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    Cpu device;
    auto mine = train_on_mesh<G, P>(stage, comm, device, layout, o);
    const std::lock_guard lock(mutex);
    if (out.empty()) out = mine.steps;
    CHECK(out == mine.steps);
  });
  return out;
}

}  // namespace

TEST_CASE("each mesh of up to eight ranks: the same bytes at every stage, and the losses of one rank") {
  const auto o = mesh_options();
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
  const auto o = mesh_options();
  for (bool sequence : {false, true}) {
    const auto flat = steps_of<Plain>(Stage::gradients, {.data = 2, .tensor = 2, .sequence_parallel = sequence}, o);
    for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1},
                                {PipelineKind::interleaved, 2},
                                {PipelineKind::zb_h1, 1},
                                {PipelineKind::zb_v, 2}})
      CHECK(steps_of<Recomputed>(Stage::parameters,
                                 {.data = 2,
                                  .tensor = 2,
                                  .pipeline = 2,
                                  .sequence_parallel = sequence,
                                  .schedule = kind,
                                  .chunks = chunks},
                                 o) == flat);
  }
}

TEST_CASE("in double, tensor ranks agree with one to 1e-12, with and without a shared sequence") {
  const auto o = mesh_options();
  const auto one = steps_of<Plain, Fp64>(Stage::none, {}, o);
  for (int tensor : {2, 4})
    for (bool sequence : {false, true})
      for (int pipeline : {1, 2}) {
        CAPTURE(tensor);
        CAPTURE(sequence);
        CAPTURE(pipeline);
        CHECK(apart(steps_of<Plain, Fp64>(Stage::parameters,
                                          {.tensor = tensor, .pipeline = pipeline, .sequence_parallel = sequence}, o),
                    one) < 1e-12);
      }
}

namespace {
RunOptions context_options(int steps = 4) {
  auto o = mesh_options();
  o.config.sequence = 16;  // eight chunks
  o.steps = steps;
  return o;
}
std::string describe(const Layout& l) {
  return text(zeropp::name_of(l.attention), " ", l.context, " context ", l.data, " data ", l.tensor, " tensor ",
              l.pipeline, " pipeline ", l.sequence_parallel ? "shared sequence" : "");
}
}  // namespace

TEST_CASE("context ranks in each mesh of up to eight: the same bytes at every stage, and the losses of one rank") {
  const auto o = context_options();
  const auto one = steps_of<Plain>(Stage::none, {}, o);
  for (auto attention : {ContextAttention::ulysses, ContextAttention::ring})
    for (int context : {2, 4})
      for (int tensor : {1, 2})
        for (int pipeline : {1, 2})
          for (int data : {1, 2}) {
            const Layout layout{
                .data = data, .tensor = tensor, .pipeline = pipeline, .context = context, .attention = attention};
            if (layout.ranks() > 8) continue;
            if (attention == ContextAttention::ulysses && context * tensor > 4) continue;  // there are 4 heads
            CAPTURE(describe(layout));
            const auto base = steps_of<Plain>(Stage::none, layout, o);
            for (auto stage : {Stage::optimizer_states, Stage::gradients, Stage::parameters})
              CHECK(steps_of<Plain>(stage, layout, o) == base);
            CHECK(steps_of<Recomputed>(Stage::parameters, layout, o) == base);
            CHECK(apart(base, one) < 1e-5);
          }
}

TEST_CASE("under context ranks a pipeline has the bytes of none, whatever its schedule") {
  const auto o = context_options();
  for (auto attention : {ContextAttention::ulysses, ContextAttention::ring}) {
    const auto flat = steps_of<Plain>(Stage::gradients, {.context = 2, .attention = attention}, o);
    for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1},
                                {PipelineKind::interleaved, 2},
                                {PipelineKind::zb_h1, 1},
                                {PipelineKind::zb_v, 2}})
      CHECK(steps_of<Recomputed>(
                Stage::parameters,
                {.pipeline = 2, .schedule = kind, .chunks = chunks, .context = 2, .attention = attention}, o) == flat);
  }
}

TEST_CASE("in double, context ranks agree with one to 1e-12; in float over 20 steps to 1e-5") {
  const auto o = context_options(), longer = context_options(20);
  const auto one = steps_of<Plain, Fp64>(Stage::none, {}, o);
  const auto one_longer = steps_of<Plain>(Stage::none, {}, longer);
  constexpr auto ring = ContextAttention::ring;
  for (const auto& layout :
       {Layout{.context = 2}, Layout{.context = 4},
        Layout{.data = 2, .tensor = 2, .sequence_parallel = true, .context = 2},
        Layout{.context = 2, .attention = ring}, Layout{.context = 4, .attention = ring},
        Layout{.context = 8, .attention = ring},
        Layout{.tensor = 2, .pipeline = 2, .sequence_parallel = true, .context = 2, .attention = ring}}) {
    CAPTURE(describe(layout));
    CHECK(apart(steps_of<Plain, Fp64>(Stage::parameters, layout, o), one) < 1e-12);
    CHECK(apart(steps_of<Recomputed>(Stage::gradients, layout, longer), one_longer) < 1e-5);
  }
}

TEST_CASE("sixteen ranks: 2 context x 2 data x 2 tensor x 2 pipeline, stage 3, recompute, zero bubble") {
  const auto o = context_options(20);
  const auto one = steps_of<Plain>(Stage::none, {}, o);
  for (auto attention : {ContextAttention::ulysses, ContextAttention::ring}) {
    const Layout layout{.data = 2,
                        .tensor = 2,
                        .pipeline = 2,
                        .sequence_parallel = true,
                        .schedule = PipelineKind::zb_v,
                        .chunks = 2,
                        .context = 2,
                        .attention = attention};
    CHECK(apart(steps_of<Recomputed>(Stage::parameters, layout, o), one) < 1e-5);
  }
}
