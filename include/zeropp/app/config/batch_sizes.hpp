// SPDX-License-Identifier: Apache-2.0
// The three numbers that size a step, as DeepSpeed relates them: batch = micro-batch x accumulation x data ranks. Any
// two give the third; the number of data ranks is never derived from them, it comes from the launcher.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>

namespace zeropp {

struct BatchSizes {
  std::int64_t batch = 0;         ///< sequences of a step, over all ranks and micro-batches; 0: not said
  std::int64_t micro = 0;         ///< sequences of a pass on a data rank; 0: not said
  std::int64_t accumulation = 0;  ///< passes of a step; 0: not said
  bool operator==(const BatchSizes&) const = default;

  int said() const { return (batch > 0) + (micro > 0) + (accumulation > 0); }

  /// All three for so many data ranks. A batch alone is one pass; a micro-batch alone is one pass on each rank. Throws
  /// ConfigError where they do not fit, with the nearest that do.
  BatchSizes on(std::int64_t data_ranks) const {
    const auto ranks = text(data_ranks, data_ranks == 1 ? " data rank" : " data ranks");
    auto all = *this;
    if (!batch) {
      all.micro = std::max<std::int64_t>(1, micro), all.accumulation = std::max<std::int64_t>(1, accumulation);
      all.batch = checked_product(checked_product(all.micro, all.accumulation), data_ranks);
      return all;
    }
    if (!micro && !accumulation) all.accumulation = 1;
    const auto pass =
        checked_product(std::max<std::int64_t>(1, all.micro), std::max<std::int64_t>(1, all.accumulation));
    const auto unit = checked_product(pass, data_ranks);
    const auto words = text(all.micro ? text("a micro-batch of ", all.micro, " x ") : std::string(),
                            all.accumulation ? text("accumulation ", all.accumulation, " x ") : std::string(), ranks);
    if (micro && accumulation && batch != unit)
      throw ConfigError(text("a batch of ", batch, " is not ", words, " = ", unit,
                             batch % pass ? text("; give a batch of ", nearest(batch, unit))
                                          : text("; start ", batch / pass, " data ranks, or give a batch of ", unit),
                             batch % (micro * data_ranks)
                                 ? std::string()
                                 : text(" or an accumulation of ", batch / (micro * data_ranks))));
    if (batch % unit)
      throw ConfigError(text("a batch of ", batch, " can not be cut into ", words,
                             "; the nearest batch that can: ", nearest(batch, unit)));
    if (!all.micro) all.micro = batch / unit;
    if (!all.accumulation) all.accumulation = batch / unit;
    return all;
  }

 private:
  static std::int64_t nearest(std::int64_t value, std::int64_t unit) {
    return std::max<std::int64_t>(1, (value + unit / 2) / unit) * unit;
  }
};

}  // namespace zeropp
