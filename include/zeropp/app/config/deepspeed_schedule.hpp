// SPDX-License-Identifier: Apache-2.0
// Learning rates as DeepSpeed's schedulers compute them (deepspeed/runtime/lr_schedules.py): its schedulers move after
// a step, so step s has the rate of their iteration s - 1, and the first step has the rate they begin with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <variant>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// The numbers that a warm-up shares with the settings of the run: flags change them.
struct WarmupTarget {
  double peak = 1e-3;
  std::int64_t warmup = 1000;  ///< steps; DeepSpeed takes at least 2
  std::int64_t steps = 0;      ///< of the run
};

/// WarmupLR, WarmupDecayLR and WarmupCosineLR.
struct WarmupSchedule {
  enum class Then { stay, line, cosine };
  Then then = Then::stay;
  bool logarithmic = true;
  double minimum = 0;            ///< where the warm-up begins: a rate, or for a cosine a fraction of the peak
  double cosine_minimum = 1e-4;  ///< where a cosine ends, as a fraction of the peak
  std::int64_t total = 0;        ///< steps to the end of the schedule; 0: those of the run

  double operator()(std::int64_t step, const WarmupTarget& target) const {
    const auto iteration = step - 1, warmup = std::max<std::int64_t>(2, target.warmup);
    const auto end = total ? total : target.steps;
    if (then == Then::cosine) return iteration < 0 ? 0 : target.peak * ratio(iteration, warmup, end);
    if (iteration < 0) return minimum;
    double gamma = 1;
    if (iteration < warmup)
      gamma = risen(iteration, warmup);
    else if (then == Then::line)
      gamma = std::max(
          0.0, static_cast<double>(end - iteration) / static_cast<double>(std::max<std::int64_t>(1, end - warmup)));
    return minimum + (target.peak - minimum) * gamma;
  }
  std::string describe() const {
    return text(then == Then::stay   ? "WarmupLR"
                : then == Then::line ? "WarmupDecayLR"
                                     : "WarmupCosineLR",
                logarithmic ? ", logarithmic from " : ", linear from ", minimum,
                then == Then::cosine ? text(" to ", cosine_minimum, " of the peak") : std::string(),
                total ? text(", ", total, " steps") : std::string());
  }

 private:
  /// The part of the warm-up that is done, 0 to 1.
  double risen(std::int64_t iteration, std::int64_t warmup) const {
    return logarithmic ? 1.0 / std::log(static_cast<double>(warmup)) * std::log(static_cast<double>(iteration + 1))
                       : static_cast<double>(iteration) / static_cast<double>(warmup);
  }
  double ratio(std::int64_t iteration, std::int64_t warmup, std::int64_t end) const {
    if (iteration < warmup) return minimum + risen(iteration, warmup) * (1 - minimum);
    const double done =
        static_cast<double>(iteration - warmup + 1) / static_cast<double>(std::max<std::int64_t>(1, end - warmup));
    return std::max(
        0.0, cosine_minimum + (1 - cosine_minimum) * ((1 + std::cos(std::numbers::pi * std::min(1.0, done))) / 2));
  }
};

/// Up, down again, then a decay; in stairs where their count is given. Momentum is not cycled here.
struct OneCycle {
  double minimum = 0, maximum = 0;
  std::int64_t first = 2000, second = 2000;  ///< steps up and down
  std::int64_t first_stairs = 0, second_stairs = 0;
  double decay_rate = 0;
  std::int64_t decay_steps = 0;

  double operator()(std::int64_t step, const WarmupTarget&) const {
    const auto size = static_cast<double>(first + second);
    if (step < 1) return minimum;
    if (static_cast<double>(step - 1) < size) return minimum + (maximum - minimum) * height(step);
    if (decay_steps == 0 || decay_rate == 0) return minimum;
    const double intervals = (static_cast<double>(step) - size) / static_cast<double>(decay_steps);
    return minimum / (1 + decay_rate * intervals);
  }
  std::string describe() const {
    return text("OneCycle, ", minimum, " to ", maximum, " in ", first, " steps and back in ", second, ", stairs ",
                first_stairs, " ", second_stairs, ", decay ", decay_rate, " in ", decay_steps);
  }

 private:
  double height(std::int64_t step) const {
    const double size = static_cast<double>(first + second), up = static_cast<double>(first) / size;
    const double cycles = static_cast<double>(step) / size, x = 1.0 + cycles - std::floor(1 + cycles);
    const bool rising = x <= up;
    if (const auto stairs = rising ? first_stairs : second_stairs; stairs > 0) {
      const auto at = step % (first + second), count = stairs;
      const double stair = at <= first
                               ? static_cast<double>(at * count) / static_cast<double>(first)
                               : static_cast<double>((first + second - at) * count) / static_cast<double>(second);
      return std::floor(stair) / static_cast<double>(count);
    }
    return rising ? x / up : (x - 1) / (up - 1);
  }
};

/// LRRangeTest: a rate that only grows, to find where training breaks.
struct RangeTest {
  double minimum = 1e-3, growth = 1;
  std::int64_t interval = 2000;  ///< steps
  bool stairs = false;

  double operator()(std::int64_t step, const WarmupTarget&) const {
    const double intervals = static_cast<double>(std::max<std::int64_t>(0, step)) / static_cast<double>(interval);
    return minimum * (1 + growth * (stairs ? std::floor(intervals) : intervals));
  }
  std::string describe() const {
    return text("LRRangeTest, ", minimum, ", ", growth, " more each ", interval, " steps", stairs ? ", in stairs" : "");
  }
};

using DeepSpeedSchedule = std::variant<WarmupSchedule, OneCycle, RangeTest>;

}  // namespace zeropp
