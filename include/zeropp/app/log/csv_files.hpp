// SPDX-License-Identifier: Apache-2.0
// Scalars as DeepSpeed's csv_monitor lays them out: a file for each tag, Train/Samples/lr in Train_Samples_lr.csv, with
// the header "step,lr" and a line for each value.
#pragma once

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include <zeropp/app/log/keep_lines.hpp>
#include <zeropp/base/error.hpp>

namespace zeropp {

class CsvFiles {
 public:
  /// Makes `folder`. A run that goes on keeps the lines of earlier ones up to step `first`; another begins anew.
  CsvFiles(std::string folder, std::int64_t first, std::function<void(const std::string&)> warn)
      : folder_(std::move(folder)), first_(first), warn_(std::move(warn)) {
    std::error_code ignored;  // writing fails, and says so
    std::filesystem::create_directories(folder_, ignored);
  }

  void scalar(const std::string& tag, double value, std::int64_t step) {
    if (failed_) return;
    auto found = files_.find(tag);
    if (found == files_.end()) found = files_.emplace(tag, open(tag)).first;
    found->second << text(step, ",", value, "\r\n") << std::flush;  // Python's csv ends lines so
    if (found->second) return;
    failed_ = true;
    warn_(text("cannot write ", folder_, "; training goes on without it"));
  }

 private:
  std::ofstream open(const std::string& tag) const {
    auto name = tag;
    for (auto& c : name)
      if (c == '/' || c == ' ') c = '_';
    const auto path = folder_ + "/" + name + ".csv";
    const auto header = text("step,", tag.substr(tag.rfind('/') + 1), "\r\n");
    const auto error = keep_lines(path, header, [&](const std::string& line) {
      std::int64_t step = -1;
      std::from_chars(line.data(), line.data() + line.size(), step);
      return first_ > 0 && step >= 0 && step <= first_ && line.ends_with('\r');
    });
    std::ofstream file(path, std::ios::binary | std::ios::app);
    if (error) file.setstate(std::ios::failbit);
    return file;
  }

  std::string folder_;
  std::int64_t first_;
  std::function<void(const std::string&)> warn_;
  std::map<std::string, std::ofstream> files_;
  bool failed_ = false;
};

}  // namespace zeropp
