// SPDX-License-Identifier: Apache-2.0
// Where a step's time on the GPU goes: an event before and after each operation, summed by the operation's name, beside
// the work that its cost states; or one after the other, as a timeline on which communication lies beside computing.
// Off, it costs nothing; on, a microsecond or two an operation.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/trace.hpp>
#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp {

class CudaProfile {
 public:
  struct Line {
    std::string name;
    int calls = 0;
    double milliseconds = 0, flops = 0, bytes = 0;
  };

  void begin(const Cost& cost, cudaStream_t stream, SpanKind kind = SpanKind::unit) {
    if (used_ == spans_.size()) spans_.emplace_back();
    auto& span = spans_[used_];
    span.cost = cost;
    span.kind = kind;
    span.begin.record(stream);
  }
  void end(cudaStream_t stream) { spans_[used_++].end.record(stream); }

  /// The records since the last call, the longest first. Waits for their work.
  std::vector<Line> take() {
    std::map<std::string_view, Line> by_name;
    for (std::size_t i = 0; i < used_; ++i) {
      auto& span = spans_[i];
      const double milliseconds = 1e3 * seconds_between(span.begin, span.end);
      auto& line = by_name[span.cost.name];
      line.name = span.cost.name;
      ++line.calls;
      line.milliseconds += milliseconds;
      line.flops += span.cost.flops;
      line.bytes += span.cost.bytes;
    }
    used_ = 0;
    std::vector<Line> lines;
    for (auto& [name, line] : by_name) lines.push_back(std::move(line));
    std::sort(lines.begin(), lines.end(), [](auto& a, auto& b) { return a.milliseconds > b.milliseconds; });
    return lines;
  }

  /// The same as spans from the first operation on, in their order. Waits for it.
  std::vector<Span> take_timeline() {
    std::vector<Span> spans;
    for (std::size_t i = 0; i < used_; ++i) {
      auto& [cost, kind, begin, end] = spans_[i];
      const double at = seconds_between(spans_[0].begin, begin);
      spans.push_back({.kind = kind,
                       .name = std::string(cost.name),
                       .bytes = static_cast<std::int64_t>(cost.bytes),
                       .begin = at,
                       .end = at + seconds_between(begin, end)});
    }
    used_ = 0;
    return spans;
  }

 private:
  struct Operation {
    Cost cost;
    SpanKind kind = SpanKind::unit;
    CudaEvent begin{true}, end{true};
  };
  static double seconds_between(const CudaEvent& begin, CudaEvent& end) {
    end.wait();
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds) / 1e3;
  }

  std::deque<Operation> spans_;  // events are made once and used again
  std::size_t used_ = 0;
};

}  // namespace zeropp
