// SPDX-License-Identifier: Apache-2.0
// A pipeline trains as the whole model does: the same bytes of losses, norms and weights for every depth, schedule,
// stage of ZeRO and mesh.
#include <doctest/doctest.h>

#include <mutex>

#include <zeropp/comm/thread.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

constexpr ThreadOptions within{.limit = std::chrono::seconds(30)};

template <class G>
Record whole(int ranks, const RunOptions& o) {
  Record out;
  run_ranks(ranks, within, [&](Comm comm) {
    Cpu device;
    Sharded<G, Stage::none> model{comm, device, G{o.config}, {.reduction = o.reduction}};
    auto mine = record(model, comm, o);
    if (comm.rank() == 0) out = std::move(mine);
  });
  return out;
}

template <class G, Stage S>
Record piped(int data, int stages, PipelineKind schedule, const RunOptions& o, int chunks = 1) {
  Record out;
  std::mutex mutex;
  run_ranks(data * stages, within, [&](Comm comm) {
    Cpu device;
    const Mesh mesh{comm, {.data = data, .pipeline = stages}};
    PipelineStage<G> stage{{.comm = mesh.pipeline(), .schedule = schedule, .chunks = chunks, .width = o.config.width},
                           G{o.config}};
    Sharded<PipelineStage<G>, S> model{mesh, device, std::move(stage), {.reduction = o.reduction}};
    auto mine = record(model, mesh.data(), o);
    const std::lock_guard lock(mutex);
    if (out.steps.empty()) out.steps = mine.steps;
    CHECK(out.steps == mine.steps);  // the loss is known on every rank
    for (auto& [name, bytes] : mine.weights) {
      const auto [entry, fresh] = out.weights.emplace(name, bytes);
      CHECK(entry->second == bytes);
    }
  });
  return out;
}

template <class G>
Record piped(Stage stage, int data, int stages, PipelineKind schedule, const RunOptions& o, int chunks = 1) {
  switch (stage) {
    case Stage::none: return piped<G, Stage::none>(data, stages, schedule, o, chunks);
    case Stage::optimizer_states: return piped<G, Stage::optimizer_states>(data, stages, schedule, o, chunks);
    case Stage::gradients: return piped<G, Stage::gradients>(data, stages, schedule, o, chunks);
    case Stage::parameters: return piped<G, Stage::parameters>(data, stages, schedule, o, chunks);
  }
  return {};
}

void same(const Record& a, const Record& b) {
  CHECK(a.steps == b.steps);
  CHECK(a.weights == b.weights);
}

}  // namespace

TEST_CASE("every depth and stage: the bytes of the whole model") {
  for (int data : {1, 2})
    for (auto reduction : {Reduction::every_micro_batch, Reduction::once}) {
      RunOptions o{.micro_batches = 3, .steps = 3, .reduction = reduction};
      o.config.layers = 8;
      const auto base = whole<Plain>(data, o);
      for (int stages : {1, 2, 4, 8}) {
        if (data * stages > 8) continue;
        CAPTURE(stages);
        for (auto stage : all_stages) {
          CAPTURE(static_cast<int>(stage));
          same(piped<Plain>(stage, data, stages, PipelineKind::one_forward_one_backward, o), base);
        }
        same(piped<Recomputed>(Stage::parameters, data, stages, PipelineKind::gpipe, o), base);
      }
    }
}

TEST_CASE("every schedule: the bytes of the whole model") {
  RunOptions o{.rows = 9, .micro_batches = 4, .steps = 3};
  o.config.layers = 8;
  for (int data : {1, 2}) {
    const auto base = whole<Plain>(data, o);
    for (int stages : {1, 2, 4})
      for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1},
                                  {PipelineKind::one_forward_one_backward, 1},
                                  {PipelineKind::interleaved, 2},
                                  {PipelineKind::zb_h1, 1},
                                  {PipelineKind::zb_v, 2}}) {
        CAPTURE(stages);
        const auto name = name_of(kind);  // clang 14 captures no structured binding
        CAPTURE(name);
        same(piped<Plain>(Stage::parameters, data, stages, kind, o, chunks), base);
        same(piped<Recomputed>(Stage::gradients, data, stages, kind, o, chunks), base);
      }
  }
}

TEST_CASE("logits under a pipeline are those of the whole model, on every rank") {
  const RunOptions o;
  const auto logits = [&](auto& model) {
    auto batch = Batch::on(model.device(), 2, o.config.context);
    for (std::int64_t i = 0; i < batch.tokens.size(); ++i) batch.tokens.data()[i] = static_cast<std::int32_t>(i);
    std::vector<float> out(static_cast<std::size_t>(2 * o.config.vocabulary));
    const std::int64_t rows[] = {3, 20};
    model.logits(batch.tokens, rows, out);
    return out;
  };
  Cpu cpu;
  Sharded<Plain, Stage::none> one{Comm{}, cpu, Plain{o.config}};
  const auto base = logits(one);
  CHECK(base[0] != base[1]);
  run_ranks(3, within, [&](Comm comm) {
    Cpu device;
    const Mesh mesh{comm, {.pipeline = 3}};
    Sharded<PipelineStage<Plain>, Stage::none> model{
        mesh, device, PipelineStage<Plain>{{.comm = mesh.pipeline(), .width = o.config.width}, Plain{o.config}}};
    CHECK(logits(model) == base);
  });
}

TEST_CASE("cuts: the dearest part costs as little as possible") {
  const std::vector<double> equal(8, 1.0);
  const auto even = cut_pipeline(equal, 0, 0, 4);
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(even[i] == Range{static_cast<std::int64_t>(2 * i), static_cast<std::int64_t>(2 * i + 2)});
  const auto head = cut_pipeline(equal, 0, 2, 3);  // the head counts as two blocks
  CHECK(head[0].size() + head[1].size() + head[2].size() == 8);
  CHECK(head[2].size() <= 2);
  // against all cuts
  const std::vector<double> costs{3, 1, 4, 1, 5, 9, 2, 6};
  const auto dearest = [&](std::span<const Range> cut) {
    double most = 0;
    for (std::size_t part = 0; part < cut.size(); ++part) {
      double cost = part == 0 ? 2 : part + 1 == cut.size() ? 7 : 0;
      for (auto i = cut[part].begin; i < cut[part].end; ++i) cost += costs[static_cast<std::size_t>(i)];
      most = std::max(most, cost);
    }
    return most;
  };
  double best = 1e9;
  for (std::int64_t a = 1; a < 8; ++a)
    for (std::int64_t b = a + 1; b < 8; ++b) best = std::min(best, dearest(std::vector<Range>{{0, a}, {a, b}, {b, 8}}));
  CHECK(dearest(cut_pipeline(costs, 2, 7, 3)) == best);
  CHECK_THROWS_WITH_AS(cut_pipeline(equal, 0, 0, 9), doctest::Contains("the model has 8"), ConfigError);
}

TEST_CASE("a pipeline that cannot be is refused before memory is taken") {
  run_ranks(4, within, [&](Comm comm) {
    const Mesh mesh{comm, {.pipeline = 4}};
    const RunOptions o;  // three blocks
    CHECK_THROWS_WITH_AS((PipelineStage<Plain>{{.comm = mesh.pipeline(), .width = 24}, Plain{o.config}}),
                         doctest::Contains("the model has 3"), ConfigError);
    CHECK_THROWS_WITH_AS((PipelineStage<Plain>{{.comm = mesh.pipeline()}, Plain{o.config}}), doctest::Contains("width"),
                         ConfigError);
    CHECK_THROWS_WITH_AS(
        (PipelineStage<Plain>{{.comm = mesh.pipeline(), .schedule = PipelineKind::zb_v, .width = 24}, Plain{o.config}}),
        doctest::Contains("2 chunks"), ConfigError);
  });
}
