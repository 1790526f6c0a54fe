// SPDX-License-Identifier: Apache-2.0
// The work of ranks over time: spans of a real run or of a simulated one, on one clock. `Comm`, the pipeline and the
// optimizer record themselves where a recorder was given to the world's communicator; without one it costs a branch.
//
//   Trace trace;
//   run_ranks(4, [&](Comm world) {
//     world.record(&trace.rank(world.rank()));   // before a Mesh or a model is built on it
//     ... train ...
//   });
//   std::ofstream("trace.json") << trace_json(trace);  // app/log/trace_json.hpp; timeline_svg draws it
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zeropp {

enum class SpanKind : std::uint8_t {
  forward,
  backward,         ///< for input and weights
  backward_input,   ///< for the input only
  backward_weight,  ///< the rest
  unit,             ///< a layer inside a pass
  optimizer,
  collective
};
inline constexpr std::array<std::string_view, 7> span_kinds{
    "forward", "backward", "backward for input", "backward for weights", "unit", "optimizer", "collective"};
constexpr std::string_view name_of(SpanKind kind) { return span_kinds[static_cast<std::size_t>(kind)]; }

struct Span {
  SpanKind kind = SpanKind::forward;
  std::string name = {};          ///< of a collective or a layer; empty: the kind says it
  std::string axis = {};          ///< of the mesh that a collective runs along
  std::int64_t micro_batch = -1;  ///< of a pass, from 0
  int chunk = 0;                  ///< of the pipeline stage whose pass it is
  std::int64_t bytes = 0;         ///< that a collective sent, or received point to point
  double begin = 0, end = 0;      ///< seconds
};

/// The spans of one rank, in the order of their beginnings. One thread records at a time.
class Recorder {
 public:
  using Clock = std::function<double()>;  ///< seconds

  Recorder(int rank, Clock clock) : rank_(rank), clock_(std::move(clock)) {}

  int rank() const { return rank_; }
  double now() const { return clock_(); }
  const std::vector<Span>& spans() const { return spans_; }
  /// Adds a span that was measured elsewhere, on this clock.
  void add(Span span) { spans_.push_back(std::move(span)); }
  /// Forgets what was recorded, of a warm-up; not while something is being recorded.
  void clear() { spans_.clear(); }

 private:
  friend class Recording;
  int rank_;
  Clock clock_;
  std::vector<Span> spans_;
};

/// Records a span from its construction to its destruction; does nothing without a recorder.
class Recording {
 public:
  Recording(Recorder* recorder, SpanKind kind, std::int64_t micro_batch = -1, int chunk = 0)
      : Recording(recorder, kind, {}, {}, micro_batch, chunk, 0) {}
  Recording(Recorder* recorder, SpanKind kind, std::string_view name, std::string_view axis = {},
            std::int64_t bytes = 0)
      : Recording(recorder, kind, name, axis, -1, 0, bytes) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (recorder_ && index_ < recorder_->spans_.size()) recorder_->spans_[index_].end = recorder_->now();
  }

 private:
  Recording(Recorder* recorder, SpanKind kind, std::string_view name, std::string_view axis, std::int64_t micro_batch,
            int chunk, std::int64_t bytes)
      : recorder_(recorder) {
    if (!recorder) return;
    index_ = recorder->spans_.size();
    const double now = recorder->now();
    recorder->spans_.push_back({kind, std::string(name), std::string(axis), micro_batch, chunk, bytes, now, now});
  }

  Recorder* recorder_;
  std::size_t index_ = 0;
};

/// The spans of all ranks of this process. It outlives what records into it; ask for spans when ranks have ended.
class Trace {
 public:
  /// The recorder of a rank, made when it is first asked for; from any thread. Its clock: seconds since the trace
  /// began, or one of your own.
  Recorder& rank(int rank, Recorder::Clock clock = {}) {
    const std::lock_guard lock(mutex_);
    auto& recorder = ranks_[rank];
    if (!recorder) {
      if (!clock)
        clock = [begin = begin_] {
          return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        };
      recorder = std::make_unique<Recorder>(rank, std::move(clock));
    }
    return *recorder;
  }
  /// In the order of ranks.
  std::vector<const Recorder*> recorders() const {
    std::vector<const Recorder*> all;
    for (const auto& entry : ranks_) all.push_back(entry.second.get());
    return all;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::map<int, std::unique_ptr<Recorder>> ranks_;
};

}  // namespace zeropp
