// SPDX-License-Identifier: Apache-2.0
// The instructions of a pipeline's ranks in a step, as data: passes over micro-batches in an order of each stage's own,
// and the transfers between them. A model of p stages and v chunks a stage is cut into p · v parts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <zeropp/base/shape.hpp>

namespace zeropp {

struct PipelineOp {
  enum class Kind : std::uint8_t {
    receive_activation,
    forward,
    send_activation,
    receive_gradient,
    backward,        ///< for input and weights
    backward_input,  ///< for the input only; `backward_weight` follows some time later
    backward_weight,
    send_gradient
  };
  Kind kind = Kind::forward;
  std::int64_t micro_batch = 0;
  int chunk = 0;  ///< of this stage: whose pass it is, or whose pass needs or made what is transferred
  int peer = -1;  ///< stage on the other side of a transfer

  bool is_pass() const {
    return kind == Kind::forward || kind == Kind::backward || kind == Kind::backward_input ||
           kind == Kind::backward_weight;
  }
  friend bool operator==(const PipelineOp&, const PipelineOp&) = default;
};

/// How long a pass over one chunk takes; backward is input and weight together. Transfers take no time.
struct PassTimes {
  double forward = 1, backward_input = 1, backward_weight = 1;

  double of(PipelineOp::Kind kind) const {
    switch (kind) {
      case PipelineOp::Kind::forward: return forward;
      case PipelineOp::Kind::backward: return backward_input + backward_weight;
      case PipelineOp::Kind::backward_input: return backward_input;
      case PipelineOp::Kind::backward_weight: return backward_weight;
      default: return 0;
    }
  }
};

struct PipelineSchedule {
  int stages = 1, chunks = 1;
  std::int64_t micro_batches = 1;
  bool folded = false;  ///< the second chunks run from the last stage back to the first (a V), not from the first again
  std::vector<std::vector<PipelineOp>> of_stage;

  int parts() const { return stages * chunks; }
  const std::vector<PipelineOp>& instructions(int stage) const { return of_stage[static_cast<std::size_t>(stage)]; }

  /// Which part of the model chunk `chunk` of `stage` is, and the way back.
  int model_part(int stage, int chunk) const {
    return folded && chunk % 2 ? (chunk + 1) * stages - 1 - stage : chunk * stages + stage;
  }
  int chunk_of(int part) const { return part / stages; }
  int stage_of(int part) const { return folded && chunk_of(part) % 2 ? stages - 1 - part % stages : part % stages; }
};

/// When each instruction of each stage begins and ends if passes take `times`, each stage in its order, as early as
/// what it needs is there. `spans[stage][i]` belongs to instruction i; of transfers it is empty.
struct PipelineTimeline {
  struct Span {
    double begin = 0, end = 0;
  };
  std::vector<std::vector<Span>> spans;
  double end = 0;  ///< of the last pass

  /// Time that stages spend waiting, as a share of all their time until the last one ends.
  double bubble() const {
    double busy = 0;
    for (auto& stage : spans)
      for (auto& span : stage) busy += span.end - span.begin;
    return end > 0 ? 1 - busy / (end * static_cast<double>(spans.size())) : 0;
  }

  /// Throws Error where the order of passes cannot be carried out.
  static PipelineTimeline of(const PipelineSchedule& s, const PassTimes& times) {
    using Kind = PipelineOp::Kind;
    constexpr double never = std::numeric_limits<double>::infinity();
    const auto parts = static_cast<std::size_t>(s.parts());
    std::vector<double> forward(parts * static_cast<std::size_t>(s.micro_batches), never), backward = forward;
    const auto slot = [&](int part, std::int64_t m) {
      return static_cast<std::size_t>(m) * parts + static_cast<std::size_t>(part);
    };
    PipelineTimeline line;
    std::vector<std::size_t> next(s.of_stage.size());
    std::vector<double> free(s.of_stage.size());
    for (auto& stage : s.of_stage) line.spans.emplace_back(stage.size());
    for (bool moved = true; std::exchange(moved, false);)
      for (std::size_t stage = 0; stage < s.of_stage.size(); ++stage)
        for (; next[stage] < s.of_stage[stage].size(); ++next[stage]) {
          const auto& op = s.of_stage[stage][next[stage]];
          if (!op.is_pass()) continue;
          const int part = s.model_part(static_cast<int>(stage), op.chunk);
          double ready = free[stage];
          if (op.kind == Kind::forward) {
            if (part > 0) ready = std::max(ready, forward[slot(part - 1, op.micro_batch)]);
          } else if (op.kind != Kind::backward_weight) {
            ready = std::max(ready, forward[slot(part, op.micro_batch)]);
            if (part + 1 < s.parts()) ready = std::max(ready, backward[slot(part + 1, op.micro_batch)]);
          } else {
            ready = std::max(ready, backward[slot(part, op.micro_batch)]);
          }
          if (ready == never) break;
          free[stage] = ready + times.of(op.kind);
          if (op.kind == Kind::forward) forward[slot(part, op.micro_batch)] = free[stage];
          if (op.kind == Kind::backward || op.kind == Kind::backward_input)
            backward[slot(part, op.micro_batch)] = free[stage];
          line.spans[stage][next[stage]] = {ready, free[stage]};
          line.end = std::max(line.end, free[stage]);
          moved = true;
        }
    for (std::size_t stage = 0; stage < s.of_stage.size(); ++stage)
      if (next[stage] != s.of_stage[stage].size())
        throw Error(text("pipeline: instruction ", next[stage], " of stage ", stage, " never gets what it needs"));
    return line;
  }
};

/// Puts the transfers between the passes. All passes and transfers are brought into one order, that of a run in which
/// passes take `times`; each stage's list is its part of it. So not even sends that wait for their receiver can lock
/// the stages, messages between two stages are received in the order in which they are sent, and nothing is waited for
/// before it is needed.
inline void add_transfers(PipelineSchedule& s, const PassTimes& times) {
  using Kind = PipelineOp::Kind;
  if (!(times.forward > 0 && times.backward_input > 0 && times.backward_weight >= 0))
    throw Error("the transfers of a pipeline are placed for passes that take some time");
  for (auto& list : s.of_stage)
    for (auto& op : list)
      if (!op.is_pass()) throw Error("the transfers of this pipeline schedule have been placed already");
  const auto line = PipelineTimeline::of(s, times);
  struct Event {
    double time;
    bool pass;  ///< after the transfers of the same moment
    int stage;
    PipelineOp op;
  };
  std::vector<std::vector<Event>> events(s.of_stage.size());
  std::vector<Event> transfers;
  for (int stage = 0; stage < s.stages; ++stage)
    for (std::size_t i = 0; i < s.instructions(stage).size(); ++i) {
      const auto& op = s.instructions(stage)[i];
      const auto& span = line.spans[static_cast<std::size_t>(stage)][i];
      events[static_cast<std::size_t>(stage)].push_back({span.begin, true, stage, op});
      if (op.kind == Kind::backward_weight) continue;
      const bool forward = op.kind == Kind::forward;
      const int part = s.model_part(stage, op.chunk), to = part + (forward ? 1 : -1);
      if (to < 0 || to >= s.parts() || s.stage_of(to) == stage) continue;
      transfers.push_back({span.end,
                           false,
                           stage,
                           {forward ? Kind::send_activation : Kind::send_gradient, op.micro_batch, op.chunk, to}});
    }
  std::stable_sort(transfers.begin(), transfers.end(), [](auto& a, auto& b) { return a.time < b.time; });
  for (auto& transfer : transfers) {
    const int to = s.stage_of(transfer.op.peer);
    auto received = transfer;
    received.op.kind = transfer.op.kind == Kind::send_activation ? Kind::receive_activation : Kind::receive_gradient;
    received.op.chunk = s.chunk_of(transfer.op.peer);
    received.op.peer = transfer.stage;
    transfer.op.peer = to;
    events[static_cast<std::size_t>(transfer.stage)].push_back(transfer);
    events[static_cast<std::size_t>(to)].push_back(received);
  }
  for (std::size_t stage = 0; stage < events.size(); ++stage) {
    auto& list = events[stage];
    std::stable_sort(list.begin(), list.end(),
                     [](auto& a, auto& b) { return a.time != b.time ? a.time < b.time : a.pass < b.pass; });
    s.of_stage[stage].clear();
    for (auto& event : list) s.of_stage[stage].push_back(event.op);
  }
}

}  // namespace zeropp
