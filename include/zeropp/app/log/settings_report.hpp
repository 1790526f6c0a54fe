// SPDX-License-Identifier: Apache-2.0
// The settings of a run in words: each with its value and where that came from, and the rates that come of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <zeropp/app/config/settings.hpp>

namespace zeropp {

/// A line for each setting: name, value, origin.
inline std::string describe_settings(const SettingList& settings, const Origins& origins) {
  std::size_t names = 0, values = 0;
  for (auto& [name, value] : settings)
    names = std::max(names, name.size()), values = std::max(values, std::min<std::size_t>(value.size(), 40));
  std::string out = "settings:";
  for (auto& [name, value] : settings)
    out += text("\n  ", name, std::string(names + 2 - name.size(), ' '), value,
                std::string(values + 2 - std::min(values, value.size()), ' '), origins.of(name));
  return out;
}

/// "learning rate at step 0: 0, 1: 0.0001, ..., 379: 1e-05": the first steps, and the last one.
inline std::string describe_rates(const TrainSettings& s) {
  std::string out = "learning rate at step";
  std::int64_t before = -1;
  for (std::int64_t step : {std::int64_t{0}, std::int64_t{1}, std::int64_t{10}, std::int64_t{100}, s.steps - 1}) {
    if (step <= before || step >= s.steps) continue;
    out += text(before < 0 ? " " : ", ", step, ": ", s.rate(step));
    before = step;
  }
  return out;
}

/// One line of the keys of a file that have no effect here; empty where there are none.
inline std::string describe_notes(const TrainSettings& s) {
  std::string out;
  for (auto& note : s.notes) out += (out.empty() ? "without effect here: " : ", ") + note;
  return out;
}

}  // namespace zeropp
