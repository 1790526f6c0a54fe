// SPDX-License-Identifier: Apache-2.0
// Traces: spans of passes, collectives and the optimizer, on every rank and nested as they ran; the files made of them.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <map>
#include <set>
#include <string>
#include <vector>

#include <zeropp/app/log/timeline.hpp>
#include <zeropp/app/log/trace_json.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/pipeline/schedule.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

/// A step of the small GPT on a pipeline of two stages by ZB-H1, recorded.
void train_recorded(Trace& trace) {
  RunOptions o{.rows = 4, .micro_batches = 4, .steps = 1};
  o.config = {.vocabulary = 64, .sequence = 12, .width = 24, .heads = 4, .layers = 4};
  run_ranks(2, {.limit = std::chrono::seconds(60)}, [&](Comm world) {
    world.record(&trace.rank(world.rank()));
    const Mesh mesh{world, {.pipeline = 2}};
    Cpu device;
    PipelineStage<Plain> stage{{.comm = mesh.pipeline(), .schedule = PipelineKind::zb_h1, .width = o.config.width},
                               Plain{o.config}};
    Sharded<PipelineStage<Plain>, Stage::gradients> model{mesh, device, std::move(stage)};
    trace.rank(world.rank()).clear();
    record(model, mesh.data(), o);
  });
}

bool inside(const Span& a, const Span& b) { return a.begin >= b.begin && a.end <= b.end; }

}  // namespace

TEST_CASE("without a recorder nothing is recorded") {
  { const Recording none(nullptr, SpanKind::forward, 3); }
  Comm comm;
  CHECK(comm.recorder() == nullptr);
}

TEST_CASE("a recorder keeps what ran, nested, on the clock it was given") {
  Trace trace;
  double now = 1;
  auto& recorder = trace.rank(5, [&] { return now; });
  CHECK(&trace.rank(5) == &recorder);
  {
    const Recording outer(&recorder, SpanKind::backward, 2, 1);
    now = 2;
    { const Recording inner(&recorder, SpanKind::unit, "h.\"0\""); }
    now = 4;
  }
  REQUIRE(recorder.spans().size() == 2);
  CHECK(recorder.spans()[0].kind == SpanKind::backward);
  CHECK(recorder.spans()[0].begin == 1);
  CHECK(recorder.spans()[0].end == 4);
  CHECK(recorder.spans()[0].micro_batch == 2);
  CHECK(recorder.spans()[1].begin == 2);
  const auto json = nlohmann::json::parse(trace_json(trace));
  CHECK(json["traceEvents"].back()["name"] == "h.\"0\"");
  CHECK(json["traceEvents"].back()["ts"] == 2e6);
  CHECK(json["traceEvents"].back()["pid"] == 5);
  recorder.clear();
  CHECK(recorder.spans().empty());
}

TEST_CASE("a training step on a pipeline: every pass of the schedule in its order, layers inside passes") {
  Trace trace;
  train_recorded(trace);
  REQUIRE(trace.recorders().size() == 2);
  const auto schedule = make_schedule(PipelineKind::zb_h1, 2, 4);
  for (const auto* recorder : trace.recorders()) {
    const int rank = recorder->rank();
    CAPTURE(rank);
    std::vector<std::pair<SpanKind, std::int64_t>> passes, wanted;
    std::set<std::string> units, calls;
    int optimizer = 0;
    const Span* pass = nullptr;
    for (const auto& span : recorder->spans()) {
      CHECK(span.end >= span.begin);
      if (span.kind == SpanKind::unit) {
        REQUIRE(pass);
        CHECK(inside(span, *pass));
        units.insert(span.name);
      } else if (span.kind == SpanKind::collective) {
        CHECK_FALSE(span.axis.empty());
        calls.insert(span.name + " " + span.axis);
      } else if (span.kind == SpanKind::optimizer) {
        ++optimizer;
      } else {
        passes.emplace_back(span.kind, span.micro_batch);
        pass = &span;
      }
    }
    using Kind = PipelineOp::Kind;
    const std::map<Kind, SpanKind> kinds{{Kind::forward, SpanKind::forward},
                                         {Kind::backward_input, SpanKind::backward_input},
                                         {Kind::backward_weight, SpanKind::backward_weight}};
    for (const auto& op : schedule.instructions(rank))
      if (op.is_pass()) wanted.emplace_back(kinds.at(op.kind), op.micro_batch);
    wanted.emplace_back(SpanKind::forward, 0);  // of the evaluation that follows
    CHECK(passes == wanted);
    CHECK(optimizer == 1);
    CHECK(units.contains(rank == 0 ? "h.0" : "h.3"));
    CHECK(calls.contains("send pipeline"));
    CHECK(calls.contains("recv pipeline"));
  }
  const auto json = nlohmann::json::parse(trace_json(trace));
  std::size_t events = 0;
  for (const auto* recorder : trace.recorders()) events += 3 + recorder->spans().size();
  CHECK(json["traceEvents"].size() == events);
}

TEST_CASE("a timeline draws each pass once, and says what the colours are") {
  Trace trace;
  double now = 0;
  auto& recorder = trace.rank(0, [&] { return now; });
  for (int m = 0; m < 3; ++m) {
    const Recording pass(&recorder, m == 2 ? SpanKind::backward : SpanKind::forward, m, m == 1);
    const Recording unit(&recorder, SpanKind::unit, "h.0");
    now += 1;
  }
  const auto svg = timeline_svg(trace, "a < b");
  const auto count = [&](const std::string& what) {
    int found = 0;
    for (auto at = svg.find(what); at != std::string::npos; at = svg.find(what, at + 1)) ++found;
    return found;
  };
  CHECK(count("class=\"n\"") == 3);    // numbers of micro-batches
  CHECK(count("class=\"f\"") == 2);    // the legend's and one pass
  CHECK(count("class=\"f c\"") == 1);  // of the second chunk
  CHECK(count("class=\"b\"") == 2);
  CHECK(count("backward for weights") == 0);
  CHECK(count("a &lt; b") == 1);
  CHECK(timeline_svg(Trace{}, "nothing").find("</svg>") != std::string::npos);
}
