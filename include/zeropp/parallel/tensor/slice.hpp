// SPDX-License-Identifier: Apache-2.0
// Cutting parameters: which part of an axis a rank holds.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/layers/parameter.hpp>

namespace zeropp {

/// The part of `size` things that rank `rank` of `ranks` has; begins `offset` later. Throws ConfigError unless ranks
/// divide size: "LAYER: 3 heads are not divisible by 2 tensor ranks".
inline Range share_of(std::int64_t size, int rank, int ranks, std::string_view layer, std::string_view before,
                      std::string_view after = "", Where where = Where::here()) {
  if (size % ranks)
    throw ConfigError(text(layer, ": ", before, size, after, before.empty() ? " are" : " is", " not divisible by ",
                           ranks, " tensor ranks"),
                      where);
  return {size / ranks * rank, size / ranks * (rank + 1)};
}

/// The part of a parameter that lies in some ranges of an axis, where the ranks of `group` share it; the whole where
/// there is one rank.
inline Parameter cut(Parameter whole, std::size_t axis, std::vector<Range> ranges, const Comm& group) {
  if (group.size() == 1) return whole;
  std::int64_t size = 0;
  for (auto& range : ranges) size += range.size();
  whole.slice = {whole.shape, axis, std::move(ranges), group.size()};
  whole.tensor_group = group.identity();
  whole.shape.at(axis) = size;
  return whole;
}

}  // namespace zeropp
