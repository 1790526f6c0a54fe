// SPDX-License-Identifier: Apache-2.0
// Where a step's time on the GPU goes: an event before and after each operation, summed by the operation's name, beside
// the work that its cost states. Off, it costs nothing; on, a microsecond or two an operation.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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

  void begin(const Cost& cost, cudaStream_t stream) {
    if (used_ == spans_.size()) spans_.emplace_back();
    auto& span = spans_[used_];
    span.cost = cost;
    span.begin.record(stream);
  }
  void end(cudaStream_t stream) { spans_[used_++].end.record(stream); }

  /// What has been recorded since the last call, the longest first. Waits for it.
  std::vector<Line> take() {
    std::map<std::string_view, Line> by_name;
    for (std::size_t i = 0; i < used_; ++i) {
      auto& span = spans_[i];
      span.end.wait();
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, span.begin.get(), span.end.get()), "cudaEventElapsedTime");
      auto& line = by_name[span.cost.name];
      line.name = span.cost.name;
      ++line.calls;
      line.milliseconds += static_cast<double>(milliseconds);
      line.flops += span.cost.flops;
      line.bytes += span.cost.bytes;
    }
    used_ = 0;
    std::vector<Line> lines;
    for (auto& [name, line] : by_name) lines.push_back(std::move(line));
    std::sort(lines.begin(), lines.end(), [](auto& a, auto& b) { return a.milliseconds > b.milliseconds; });
    return lines;
  }

 private:
  struct Span {
    Cost cost;
    CudaEvent begin{true}, end{true};
  };
  std::deque<Span> spans_;  // events are made once and used again
  std::size_t used_ = 0;
};

}  // namespace zeropp
