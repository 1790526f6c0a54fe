// SPDX-License-Identifier: Apache-2.0
// The metrics of a run under DeepSpeed's tags, over the samples trained on so far: for TensorBoard, as CSV, or both.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <zeropp/app/log/csv_files.hpp>
#include <zeropp/app/log/event_file.hpp>
#include <zeropp/app/log/metrics.hpp>

namespace zeropp {

struct MonitorFolders {
  std::string tensorboard, csv;  ///< empty: none
};

class Monitors {
 public:
  /// `first`: samples that an earlier part of the run trained on. Only rank 0 should be given folders.
  Monitors(const MonitorFolders& folders, std::int64_t first, const std::function<void(const std::string&)>& warn) {
    if (!folders.tensorboard.empty()) events_.emplace(folders.tensorboard, first ? first + 1 : 0, warn);
    if (!folders.csv.empty()) csv_.emplace(folders.csv, first, warn);
  }

  void write(const StepMetrics& m, std::int64_t samples) {
    const auto add = [&](const std::string& tag, double value) {
      if (events_) events_->scalar(tag, value, samples);
      if (csv_) csv_->scalar(tag, value, samples);
    };
    if (!events_ && !csv_) return;
    add("Train/Samples/train_loss", m.loss);
    add("Train/Samples/lr", m.learning_rate);
    if (m.loss_scale > 0) add("Train/Samples/loss_scale", m.loss_scale);
    if (m.validation_loss >= 0) add("Train/Samples/eval_loss", m.validation_loss);
  }

 private:
  std::optional<EventFile> events_;
  std::optional<CsvFiles> csv_;
};

}  // namespace zeropp
