// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl: one object a step, numbers printed so that they read back to the same bits. A file is only appended to,
// or replaced by one that was written beside it: no end of the program loses what it held. A full disk costs one warning,
// not the training.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <zeropp/app/log/keep_lines.hpp>
#include <zeropp/base/error.hpp>

namespace zeropp {

struct StepMetrics {
  std::int64_t step = 0;  ///< optimizer steps done, from 1
  double loss = 0;        ///< nats a token
  double grad_norm = 0;
  double learning_rate = 0;
  double milliseconds = 0;
  double tokens_per_second = 0;
  double mfu = 0;               ///< model FLOPs over the GEMM rate of the machine, in [0, 1]
  std::int64_t bytes = 0;       ///< held by this rank's pool
  double loss_scale = 0;        ///< of this step, where one adapts
  double validation_loss = -1;  ///< where it was measured after this step
};

inline std::string to_json(const StepMetrics& m) {
  const auto number = [](double value) { return std::isfinite(value) ? text(value) : std::string("null"); };
  return text("{\"step\":", m.step, ",\"loss\":", number(m.loss), ",\"grad_norm\":", number(m.grad_norm),
              ",\"learning_rate\":", number(m.learning_rate), ",\"milliseconds\":", number(m.milliseconds),
              ",\"tokens_per_second\":", number(m.tokens_per_second), ",\"mfu\":", number(m.mfu),
              ",\"bytes\":", m.bytes, m.loss_scale > 0 ? text(",\"loss_scale\":", number(m.loss_scale)) : std::string(),
              m.validation_loss >= 0 ? text(",\"validation_loss\":", number(m.validation_loss)) : std::string(), "}");
}

class MetricsFile {
 public:
  /// Keeps the lines of an earlier run up to `keep_steps` (a resumed run goes on from there) and drops what came after.
  MetricsFile(std::string path, std::int64_t keep_steps, std::function<void(const std::string&)> warn)
      : path_(std::move(path)), warn_(std::move(warn)) {
    std::error_code none;
    if (std::filesystem::is_regular_file(path_, none)) keep(keep_steps);
    file_.open(path_, std::ios::app);
    check();
  }

  void write(const StepMetrics& metrics) {
    if (failed_) return;
    file_ << to_json(metrics) << "\n" << std::flush;
    check();
  }

 private:
  void keep(std::int64_t steps) {
    const auto error = keep_lines(path_, "", [&](const std::string& line) {
      return step_of(line) >= 1 && step_of(line) <= steps && line.ends_with('}');
    });
    failed(static_cast<bool>(error));
  }
  static std::int64_t step_of(const std::string& line) {
    constexpr std::string_view head = "{\"step\":";
    std::int64_t step = -1;
    if (line.starts_with(head)) std::from_chars(line.data() + head.size(), line.data() + line.size(), step);
    return step;
  }
  void check() { failed(!file_); }
  void failed(bool now) {
    if (!now || failed_) return;
    failed_ = true;
    warn_(text("cannot write ", path_, "; training goes on without it"));
  }

  std::string path_;
  std::function<void(const std::string&)> warn_;
  std::ofstream file_;
  bool failed_ = false;
};

}  // namespace zeropp
