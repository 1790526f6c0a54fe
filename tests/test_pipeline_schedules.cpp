// SPDX-License-Identifier: Apache-2.0
// Pipeline schedules as data, for up to 32 stages and 64 micro-batches: complete, in order, without deadlock, with the
// activations and the bubble that the papers state.
#include <doctest/doctest.h>

#include <deque>
#include <map>
#include <tuple>

#include <zeropp/parallel/pipeline/schedule.hpp>

using namespace zeropp;
using Kind = PipelineOp::Kind;

namespace {

struct Case {
  PipelineKind kind;
  int p, v;
  std::int64_t m;
};

template <class F>
void for_each_case(F check) {
  const auto f = [&](const Case& c) {
    CAPTURE(name_of(c.kind));
    CAPTURE(c.p);
    CAPTURE(c.m);
    CAPTURE(c.v);
    check(c);
  };
  for (int p = 1; p <= 32; ++p)
    for (std::int64_t m = 1; m <= 64; ++m) {
      for (auto kind : {PipelineKind::gpipe, PipelineKind::one_forward_one_backward, PipelineKind::zb_h1})
        f(Case{kind, p, 1, m});
      f(Case{PipelineKind::zb_v, p, 2, m});
      for (int v : {2, 3, 4})
        if (m % p == 0) f(Case{PipelineKind::interleaved, p, v, m});
    }
}

/// Most activations of chunks that a stage keeps: from the forward to the last pass of the backward.
std::int64_t most_kept(const std::vector<PipelineOp>& list) {
  std::int64_t kept = 0, most = 0;
  for (auto& op : list) {
    if (op.kind == Kind::forward) most = std::max(most, ++kept);
    if (op.kind == Kind::backward || op.kind == Kind::backward_weight) --kept;
  }
  return most;
}

/// Carries out the lists with sends that wait for their receiver; false if all stages wait.
bool ends_with_blocking_sends(const PipelineSchedule& s) {
  std::vector<std::size_t> at(static_cast<std::size_t>(s.stages));
  const auto current = [&](int stage) -> const PipelineOp* {
    const auto i = at[static_cast<std::size_t>(stage)];
    return i < s.instructions(stage).size() ? &s.instructions(stage)[i] : nullptr;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int stage = 0; stage < s.stages; ++stage)
      while (const auto* op = current(stage)) {
        if (op->is_pass()) {
          ++at[static_cast<std::size_t>(stage)], moved = true;
          continue;
        }
        if (op->kind != Kind::send_activation && op->kind != Kind::send_gradient) break;
        const auto* other = current(op->peer);
        const auto wanted = op->kind == Kind::send_activation ? Kind::receive_activation : Kind::receive_gradient;
        if (!other || other->kind != wanted || other->peer != stage) break;
        // the message is the one that the receiver expects
        REQUIRE(other->micro_batch == op->micro_batch);
        REQUIRE(s.model_part(op->peer, other->chunk) ==
                s.model_part(stage, op->chunk) + (wanted == Kind::receive_activation ? 1 : -1));
        ++at[static_cast<std::size_t>(stage)], ++at[static_cast<std::size_t>(op->peer)], moved = true;
      }
  }
  for (int stage = 0; stage < s.stages; ++stage)
    if (current(stage)) return false;
  return true;
}

}  // namespace

TEST_CASE("every pass once, in order; what is needed has been received; blocking sends do not lock") {
  for_each_case([](const Case& c) {
    const auto s = make_schedule(c.kind, c.p, c.m, c.v);
    bool good = true;
    for (int part = 0; part < s.parts(); ++part) good &= s.model_part(s.stage_of(part), s.chunk_of(part)) == part;
    for (int stage = 0; stage < c.p; ++stage) {
      std::map<std::tuple<int, Kind>, std::int64_t> next;  // by chunk: each kind runs over micro-batches in order
      for (auto& op : s.instructions(stage)) {
        const int part = s.model_part(stage, op.chunk);
        auto& count = next[{op.chunk, op.kind}];
        good &= op.micro_batch == count++;
        const auto had = [&](Kind kind) { return next[{op.chunk, kind}] > op.micro_batch; };
        const auto local = [&](int other) { return other < 0 || other >= s.parts() || s.stage_of(other) == stage; };
        if (op.kind == Kind::forward && !local(part - 1)) good &= had(Kind::receive_activation);
        if (op.kind == Kind::backward || op.kind == Kind::backward_input) {
          good &= had(Kind::forward);
          if (!local(part + 1)) good &= had(Kind::receive_gradient);
        }
        if (op.kind == Kind::backward_weight) good &= had(Kind::backward_input);
      }
      for (int chunk = 0; chunk < c.v; ++chunk) {
        good &= next[{chunk, Kind::forward}] == c.m;
        good &= next[{chunk, Kind::backward}] + next[{chunk, Kind::backward_weight}] == c.m;
      }
    }
    CHECK(good);
    CHECK(ends_with_blocking_sends(s));
    CHECK_NOTHROW(PipelineTimeline::of(s, {1, 1, 1}));
  });
}

TEST_CASE("micro-batches under way") {
  for_each_case([](const Case& c) {
    const auto s = make_schedule(c.kind, c.p, c.m, c.v);
    for (int stage = 0; stage < c.p; ++stage) {
      const auto most = most_kept(s.instructions(stage));
      switch (c.kind) {
        case PipelineKind::gpipe: CHECK(most == c.m); break;
        case PipelineKind::one_forward_one_backward: CHECK(most == std::min<std::int64_t>(c.m, c.p - stage)); break;
        case PipelineKind::interleaved:
          CHECK(most == std::min<std::int64_t>(c.m * c.v, 2 * (c.p - stage - 1) + (c.v - 1) * c.p + 1));
          break;
        case PipelineKind::zb_h1: CHECK(most <= std::min<std::int64_t>(c.m, c.p)); break;  // 1F1B's, on its first stage
        case PipelineKind::zb_v: CHECK(most <= 2 * c.p); break;                            // half chunks: p of 1F1B's
      }
    }
  });
}

TEST_CASE("the bubble") {
  for_each_case([](const Case& c) {
    const auto s = make_schedule(c.kind, c.p, c.m, c.v);
    const auto p = static_cast<double>(c.p), m = static_cast<double>(c.m), v = static_cast<double>(c.v);
    switch (c.kind) {
      case PipelineKind::gpipe:
      case PipelineKind::one_forward_one_backward:
        for (const PassTimes times : {PassTimes{1, 1, 1}, PassTimes{2, 1.5, 2.5}})
          CHECK(PipelineTimeline::of(s, times).bubble() == doctest::Approx((p - 1) / (m + p - 1)).epsilon(1e-9));
        break;
      case PipelineKind::interleaved:
        CHECK(PipelineTimeline::of(s, {}).bubble() == doctest::Approx((p - 1) / (v * m + p - 1)).epsilon(1e-9));
        break;
      case PipelineKind::zb_h1:  // (p − 1)(F + B − W), once the pipeline is full
        if (c.m >= c.p) CHECK(PipelineTimeline::of(s, {}).end == 3 * m + (p - 1));
        CHECK(PipelineTimeline::of(s, {}).end <= 3 * (m + p - 1));
        break;
      case PipelineKind::zb_v:  // nothing but the first fill
        if (c.m >= 2 * c.p) CHECK(PipelineTimeline::of(s, {}).end == 6 * m + (p - 1));
        CHECK(PipelineTimeline::of(s, {}).end <= 6 * (m + p - 1));  // of 1F1B, in chunks
        break;
    }
  });
}

TEST_CASE("transfers are put in once, for passes that take time") {
  auto schedule = make_schedule(PipelineKind::gpipe, 2, 2);
  CHECK_THROWS_AS(add_transfers(schedule, {}), Error);
  CHECK_THROWS_AS(add_transfers(schedule, {.forward = 0}), Error);
}

TEST_CASE("sizes that a schedule does not take are refused") {
  CHECK_THROWS_WITH_AS(make_schedule(PipelineKind::interleaved, 4, 6, 2), doctest::Contains("the nearest is 8"),
                       ConfigError);
  CHECK_THROWS_AS(make_schedule(PipelineKind::interleaved, 4, 8, 1), ConfigError);
  CHECK_THROWS_AS(make_schedule(PipelineKind::zb_v, 4, 8, 1), ConfigError);
  CHECK_THROWS_AS(make_schedule(PipelineKind::gpipe, 4, 8, 2), ConfigError);
  CHECK_THROWS_AS(make_schedule(PipelineKind::gpipe, 0, 8), ConfigError);
  CHECK_THROWS_AS(make_schedule(PipelineKind::gpipe, 4, 0), ConfigError);
  CHECK_THROWS_WITH_AS(pipeline_kind("2f2b"), doctest::Contains("zb-h1"), ConfigError);
  for (auto name : pipeline_kinds) CHECK(name_of(pipeline_kind(name)) == name);
}
