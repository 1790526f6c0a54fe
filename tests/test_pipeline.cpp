// SPDX-License-Identifier: Apache-2.0
// A pipeline trains as the whole model does: the same bytes of losses, norms and weights for every depth, schedule,
// stage of ZeRO and mesh.
#include <doctest/doctest.h>

#include <mutex>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>

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

template <class G>
Record piped(Stage zero, int data, int stages, PipelineKind schedule, const RunOptions& o, int chunks = 1) {
  Record out;
  std::mutex mutex;
  run_ranks(data * stages, within, [&](Comm comm) {
    Cpu device;
    const Mesh mesh{comm, {.data = data, .pipeline = stages}};
    PipelineStage<G> stage{{.comm = mesh.pipeline(), .schedule = schedule, .chunks = chunks, .width = o.config.width},
                           G{o.config}};
    ShardedEngine<PipelineStage<G>> model{mesh, device, std::move(stage), zero, {.reduction = o.reduction}};
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

/// Sends that return when their receiver has what they sent.
class Rendezvous final : public CommBackend {
 public:
  explicit Rendezvous(const Comm& comm) : data_(comm), answers_(comm.split(0, comm.rank())) {}
  int rank() const override { return data_.rank(); }
  int size() const override { return data_.size(); }
  std::string_view name() const override { return "rendezvous"; }
  void send(const Operation&, int to, std::span<const std::byte> data) override {
    data_.send(to, std::span{reinterpret_cast<const std::uint8_t*>(data.data()), data.size()});
    std::uint8_t answer = 0;
    answers_.recv(to, std::span{&answer, 1});
  }
  void recv(const Operation&, int from, std::span<std::byte> data) override {
    data_.recv(from, std::span{reinterpret_cast<std::uint8_t*>(data.data()), data.size()});
    const std::uint8_t answer = 1;
    answers_.send(from, std::span{&answer, 1});
  }
  void reduce_scatter(const Operation& op, std::span<const Piece> all) override { data_.reduce_scatter(op.dtype, all); }
  void all_gather(const Operation& op, std::span<const Piece> all) override { data_.all_gather(op.dtype, all); }
  void broadcast(const Operation& op, std::span<std::byte> data) override {
    data_.broadcast(std::span{reinterpret_cast<std::uint8_t*>(data.data()), data.size()}, op.root);
  }
  void all_to_all(const Operation&, std::span<const std::byte>, std::span<const std::int64_t>, std::span<std::byte>,
                  std::span<const std::int64_t>) override {
    FAIL("not over this communicator");
  }
  void barrier(const Operation&) override { FAIL("not over this communicator"); }
  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int>) override { return nullptr; }

 private:
  Comm data_, answers_;
};

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

TEST_CASE("sends that wait for their receiver lock no stage, and change no byte") {
  RunOptions o{.micro_batches = 8, .steps = 2};
  o.config.layers = 8;
  const auto base = whole<Plain>(1, o);
  for (const auto& schedule : {std::pair{PipelineKind::gpipe, 1},
                               {PipelineKind::one_forward_one_backward, 1},
                               {PipelineKind::interleaved, 2},
                               {PipelineKind::zb_h1, 1},
                               {PipelineKind::zb_v, 2}}) {
    CAPTURE(name_of(schedule.first));
    run_ranks(4, within, [&](Comm comm) {
      Cpu device;
      const Mesh mesh{comm, {.pipeline = 4}};
      const Comm waiting{std::make_shared<Rendezvous>(comm)};
      CHECK_FALSE(waiting.buffers_sends());
      PipelineStage<Plain> stage{
          {.comm = waiting, .schedule = schedule.first, .chunks = schedule.second, .width = o.config.width},
          Plain{o.config}};
      const ModelComms comms{mesh.world(), mesh.sharding(), mesh.tensor(), waiting, mesh.context()};
      Sharded<PipelineStage<Plain>, Stage::gradients> model{comms, device, std::move(stage)};
      CHECK(record(model, mesh.data(), o).steps == base.steps);
    });
  }
}

TEST_CASE("logits under a pipeline are those of the whole model, on every rank") {
  const RunOptions o;
  const auto logits = [&](auto& model) {
    auto batch = Batch::on(model.device(), 2, o.config.sequence);
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
    using Widthless = Sequential<Dropout, Repeat<LayerNorm>, Gelu>;
    CHECK_THROWS_WITH_AS(
        (PipelineStage<Widthless>{{.comm = mesh.pipeline()},
                                  {Dropout{"drop", 0}, {{{"a", 4}, {"b", 4}, {"c", 4}, {"d", 4}}}, Gelu{}}}),
        doctest::Contains("and no layer in front of the blocks has a width()"), ConfigError);
    CHECK_THROWS_WITH_AS(
        (PipelineStage<Plain>{{.comm = mesh.pipeline(), .schedule = PipelineKind::zb_v, .width = 24}, Plain{o.config}}),
        doctest::Contains("2 chunks"), ConfigError);
  });
}

namespace {

/// Writes down what runs when, and computes nothing. A layer that cannot split its backward logs both halves at once.
template <bool Splits>
struct Recorder {
  static constexpr LayerTraits traits{.splits_backward = Splits};
  Parameter gain;
  std::vector<std::pair<char, std::int64_t>>* log;

  auto parameters() { return std::array{&gain}; }
  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    log->emplace_back('F', ctx.first_sample);
    return Forward{std::move(x), None{}};
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, None) {
    log->emplace_back('B', ctx.first_sample);
    ctx.weight_gradients([this, m = ctx.first_sample](auto& on) {
      on.gradient(gain)[0] += 1;
      log->emplace_back('W', m);
    });
    return dy;
  }
};

template <bool Splits>
struct Recorded : Sequential<GptEmbedding, Repeat<Recorder<Splits>>, LmHead> {
  using Base = Sequential<GptEmbedding, Repeat<Recorder<Splits>>, LmHead>;
  Recorded(int blocks, std::vector<std::pair<char, std::int64_t>>& log)
      : Base{GptEmbedding{{.vocabulary = 8, .sequence = 4, .width = 4}}, {}, LmHead{"lm_head", 8, 4, {}}} {
    for (int i = 0; i < blocks; ++i)
      std::get<1>(this->children).children.push_back({{.name = text("gain.", i), .shape = {1000}}, &log});
  }
};

template <bool Splits>
void passes_are_those_of(PipelineKind kind, int chunks) {
  constexpr int stages = 4, micro_batches = 6;
  run_ranks(stages, within, [&](Comm comm) {
    Cpu device;
    std::vector<std::pair<char, std::int64_t>> log, expected;
    const Mesh mesh{comm, {.pipeline = stages}};
    PipelineStage<Recorded<Splits>> stage{{.comm = mesh.pipeline(), .schedule = kind, .chunks = chunks, .width = 4},
                                          Recorded<Splits>{stages * chunks, log}};
    const auto schedule = stage.schedule(micro_batches);
    for (auto& op : schedule.instructions(comm.rank())) {
      if (op.kind == PipelineOp::Kind::forward) expected.emplace_back('F', op.micro_batch);
      if (op.kind == PipelineOp::Kind::backward || op.kind == PipelineOp::Kind::backward_input)
        expected.emplace_back('B', op.micro_batch);
      if (op.kind == PipelineOp::Kind::backward ||
          op.kind == (Splits ? PipelineOp::Kind::backward_weight : PipelineOp::Kind::backward_input))
        expected.emplace_back('W', op.micro_batch);
    }
    using Model = Sharded<PipelineStage<Recorded<Splits>>, Stage::parameters>;
    Model model{mesh, device, std::move(stage)};
    auto batch = Batch::on(device, micro_batches, 4);
    std::fill_n(batch.tokens.data(), batch.tokens.size(), 1);
    std::fill_n(batch.labels.data(), batch.labels.size(), 1);
    model.train(batch, {.micro_batches = micro_batches});
    CHECK(log == expected);
    for (auto& unit : model.units())
      if (unit.parameters().front()->name.starts_with("gain")) CHECK(unit.gradients()[0] == micro_batches);
  });
}

}  // namespace

TEST_CASE("passes run in the order of the schedule, the halves of a backward too") {
  passes_are_those_of<true>(PipelineKind::one_forward_one_backward, 1);
  passes_are_those_of<true>(PipelineKind::zb_h1, 1);
  passes_are_those_of<true>(PipelineKind::zb_v, 2);
  passes_are_those_of<false>(PipelineKind::zb_h1, 1);
}
