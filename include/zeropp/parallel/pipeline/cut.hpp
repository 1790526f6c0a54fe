// SPDX-License-Identifier: Apache-2.0
// Where a pipeline is cut: consecutive blocks to parts, so that the most expensive part costs as little as possible.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <zeropp/base/shape.hpp>

namespace zeropp {

/// The blocks of each part, every part at least one: parts[i] = [begin, end). `front` is added to the first part's cost
/// and `back` to the last one's. Of cuts equally good the one with later parts smaller is taken. Throws ConfigError for
/// fewer blocks than parts.
inline std::vector<Range> cut_pipeline(std::span<const double> blocks, double front, double back, int parts) {
  const auto n = static_cast<int>(blocks.size());
  if (parts < 1) throw ConfigError(text("a pipeline is cut into at least 1 part, got ", parts));
  if (n < parts)
    throw ConfigError(text("a pipeline of ", parts, " parts (stages x chunks) needs as many blocks, the model has ", n,
                           "; use fewer stages or chunks, or a deeper model"));
  std::vector<double> sum{0};
  for (double cost : blocks) sum.push_back(sum.back() + cost);
  const auto at = [&](int part, int begin, int end) {
    return sum[static_cast<std::size_t>(end)] - sum[static_cast<std::size_t>(begin)] + (part == 0 ? front : 0) +
           (part + 1 == parts ? back : 0);
  };
  // least[k][i]: the cost of the dearest part where parts k.. take blocks i..
  const auto columns = static_cast<std::size_t>(n) + 1;
  std::vector<double> least((static_cast<std::size_t>(parts) + 1) * columns, std::numeric_limits<double>::infinity());
  const auto cell = [&](int part, int block) -> double& {
    return least[static_cast<std::size_t>(part) * columns + static_cast<std::size_t>(block)];
  };
  cell(parts, n) = 0;
  for (int part = parts; part-- > 0;)
    for (int i = part; i <= n - (parts - part); ++i)
      for (int end = i + 1; end <= n - (parts - part - 1); ++end)
        cell(part, i) = std::min(cell(part, i), std::max(at(part, i, end), cell(part + 1, end)));
  std::vector<Range> cut;
  for (int part = 0, i = 0; part < parts; ++part) {
    int end = n - (parts - part - 1);
    while (std::max(at(part, i, end), cell(part + 1, end)) > cell(part, i)) --end;
    cut.push_back({i, end});
    i = end;
  }
  return cut;
}

}  // namespace zeropp
