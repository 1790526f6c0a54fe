// SPDX-License-Identifier: Apache-2.0
// The schedules of a pipeline: in which order each stage runs its passes.
//   gpipe        all forwards, then all backwards (Huang et al., NeurIPS 2019)
//   1f1b         one forward, one backward: at most p micro-batches under way (Narayanan et al., SOSP 2019)
//   interleaved  1f1b over v chunks a stage: a v-th of the bubble (Narayanan et al., SC 2021)
//   zb-h1        1f1b with the weights' part of the backward put off into the bubble (Qi et al., ICLR 2024)
//   zb-v         two chunks a stage in a V, no bubble but the first fill (Qi et al., "Pipeline parallelism with
//                controllable memory", NeurIPS 2024)
#pragma once

#include <array>
#include <string>
#include <string_view>

#include <zeropp/parallel/pipeline/instructions.hpp>

namespace zeropp {

enum class PipelineKind : std::uint8_t { gpipe, one_forward_one_backward, interleaved, zb_h1, zb_v };

inline constexpr std::array<std::string_view, 5> pipeline_kinds{"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"};

constexpr std::string_view name_of(PipelineKind kind) { return pipeline_kinds[static_cast<std::size_t>(kind)]; }

/// Throws ConfigError for a name that is none.
inline PipelineKind pipeline_kind(std::string_view name) {
  for (std::size_t i = 0; i < pipeline_kinds.size(); ++i)
    if (pipeline_kinds[i] == name) return static_cast<PipelineKind>(i);
  throw ConfigError(
      text("there is no pipeline schedule \"", name, "\"; there are gpipe, 1f1b, interleaved, zb-h1, zb-v"));
}

namespace detail {

using PassList = std::vector<PipelineOp>;

inline void run(PassList& list, PipelineOp::Kind kind, std::int64_t micro_batch, int chunk = 0) {
  list.push_back({kind, micro_batch, chunk});
}

/// `warm_up` forwards, then one backward after each forward; with `lag` >= 0 the backward is split, and the weights'
/// part of a micro-batch comes `lag` micro-batches later.
inline PassList one_by_one(std::int64_t m, std::int64_t warm_up, std::int64_t lag = -1) {
  using Kind = PipelineOp::Kind;
  PassList list;
  std::int64_t forwards = 0, backwards = 0, weights = 0;
  const bool split = lag >= 0;
  while (forwards < std::min(warm_up, m)) run(list, Kind::forward, forwards++);
  while (backwards < m) {
    const bool filling = forwards < m;
    if (filling) run(list, Kind::forward, forwards++);
    run(list, split ? Kind::backward_input : Kind::backward, backwards++);
    if (split && (!filling || backwards - weights > lag)) run(list, Kind::backward_weight, weights++);
  }
  while (split && weights < m) run(list, Kind::backward_weight, weights++);
  return list;
}

/// Pass number i of a stage under the interleaved schedule: p micro-batches through one chunk, then the next chunk.
inline PassList interleaved(int stage, int p, std::int64_t m, int v) {
  using Kind = PipelineOp::Kind;
  PassList list;
  const auto pass = [&](Kind kind, std::int64_t i) {
    const auto round = i / (std::int64_t{p} * v), within = i % (std::int64_t{p} * v);
    const auto chunk = static_cast<int>(within / p);
    run(list, kind, round * p + within % p, kind == Kind::forward ? chunk : v - 1 - chunk);
  };
  const auto all = m * v, warm_up = std::min<std::int64_t>(all, 2 * (p - stage - 1) + std::int64_t{v - 1} * p);
  std::int64_t forwards = 0, backwards = 0;
  while (forwards < warm_up) pass(Kind::forward, forwards++);
  while (forwards < all) pass(Kind::forward, forwards++), pass(Kind::backward, backwards++);
  while (backwards < all) pass(Kind::backward, backwards++);
  return list;
}

/// ZB-V by simulation with passes of equal length. A stage that is free takes the first of these that can run: a
/// forward of its second chunk, then of its first, a backward of its first chunk, then of its second, weights. At most
/// 2p activations of chunks are kept, until their weights' pass; the first chunk runs at most 2(p − s) − 1
/// micro-batches ahead of the second, which is how long a micro-batch is under way from one to the other.
inline std::vector<PassList> folded(int p, std::int64_t m) {
  using Kind = PipelineOp::Kind;
  struct Counts {
    std::array<std::int64_t, 2> forward{}, input{}, weight{};
    std::int64_t kept() const { return forward[0] + forward[1] - weight[0] - weight[1]; }
  };
  std::vector<PassList> lists(static_cast<std::size_t>(p));
  std::vector<Counts> counts(lists.size());
  for (std::int64_t left = 6 * m * p; left > 0;) {
    const auto before = counts;  // what had ended when this moment began
    const auto done = [&](int part, std::array<std::int64_t, 2> Counts::*pass) {
      const bool second = part >= p;
      return (before[static_cast<std::size_t>(second ? 2 * p - 1 - part : part)].*pass)[second];
    };
    for (int stage = 0; stage < p; ++stage) {
      auto& now = counts[static_cast<std::size_t>(stage)];
      const auto start = [&](Kind kind, int chunk, std::array<std::int64_t, 2> Counts::*pass) {
        run(lists[static_cast<std::size_t>(stage)], kind, (now.*pass)[static_cast<std::size_t>(chunk)]++, chunk);
        --left;
        return true;
      };
      const auto forward = [&](int chunk) {
        const auto i = now.forward[static_cast<std::size_t>(chunk)];
        const int part = chunk ? 2 * p - 1 - stage : stage;
        if (i == m || now.kept() == 2 * p || (part > 0 && done(part - 1, &Counts::forward) <= i)) return false;
        if (chunk == 0 && now.forward[0] - now.forward[1] >= 2 * (p - stage) - 1) return false;
        return start(Kind::forward, chunk, &Counts::forward);
      };
      const auto input = [&](int chunk) {
        const auto i = now.input[static_cast<std::size_t>(chunk)];
        const int part = chunk ? 2 * p - 1 - stage : stage;
        if (i == now.forward[static_cast<std::size_t>(chunk)]) return false;
        if (part + 1 < 2 * p && done(part + 1, &Counts::input) <= i) return false;
        return start(Kind::backward_input, chunk, &Counts::input);
      };
      const auto weight = [&](int chunk) {
        const auto c = static_cast<std::size_t>(chunk);
        return now.weight[c] < now.input[c] && start(Kind::backward_weight, chunk, &Counts::weight);
      };
      forward(1) || forward(0) || input(0) || input(1) || weight(0) || weight(1);
    }
  }
  return lists;
}

}  // namespace detail

/// The instructions of a step of `micro_batches` passes over `stages` stages of `chunks` chunks. Throws ConfigError for
/// sizes that the schedule does not take.
inline PipelineSchedule make_schedule(PipelineKind kind, int stages, std::int64_t micro_batches, int chunks = 1) {
  const auto refuse = [&](const auto&... why) {
    throw ConfigError(text("pipeline schedule ", name_of(kind), ": ", why...));
  };
  if (stages < 1 || micro_batches < 1) refuse(stages, " stages and ", micro_batches, " micro-batches; both need 1");
  if (kind == PipelineKind::interleaved && chunks < 2) refuse("it needs at least 2 chunks a stage, got ", chunks);
  if (kind == PipelineKind::interleaved && micro_batches % stages != 0)
    refuse("the micro-batches must be a multiple of the ", stages, " stages, got ", micro_batches, "; the nearest is ",
           round_up(micro_batches, stages));
  if (kind == PipelineKind::zb_v && chunks != 2) refuse("it needs 2 chunks a stage, got ", chunks);
  if (kind != PipelineKind::zb_v && kind != PipelineKind::interleaved && chunks != 1)
    refuse("it runs 1 chunk a stage, got ", chunks, "; interleaved and zb-v take more");

  PipelineSchedule schedule{stages, chunks, micro_batches, kind == PipelineKind::zb_v, {}};
  for (int stage = 0; stage < stages; ++stage) switch (kind) {
      case PipelineKind::gpipe: schedule.of_stage.push_back(detail::one_by_one(micro_batches, micro_batches)); break;
      case PipelineKind::one_forward_one_backward:
        schedule.of_stage.push_back(detail::one_by_one(micro_batches, stages - 1 - stage));
        break;
      case PipelineKind::interleaved:
        schedule.of_stage.push_back(detail::interleaved(stage, stages, micro_batches, chunks));
        break;
      case PipelineKind::zb_h1:
        schedule.of_stage.push_back(detail::one_by_one(micro_batches, stages - 1 - stage, stage));
        break;
      case PipelineKind::zb_v: break;
    }
  if (kind == PipelineKind::zb_v) schedule.of_stage = detail::folded(stages, micro_batches);
  add_transfers(schedule, {});
  return schedule;
}

}  // namespace zeropp
