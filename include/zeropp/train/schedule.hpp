// SPDX-License-Identifier: Apache-2.0
// Learning rates by step: a linear warm-up from 0, then a cosine, a line or a constant. Call one with a step, or walk
// it:
//
//   for (auto [step, rate] : Cosine{.peak = 6e-4f, .warmup = 100, .steps = 2000}) { ... }
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <zeropp/base/error.hpp>

namespace zeropp {

namespace detail {

/// The fields that all schedules share. Step s of the warm-up has the rate peak · (s + 1) / warmup, so the first step
/// moves.
template <class Shape>
struct Schedule {
  float peak = 0;           ///< the highest rate
  float floor = 0;          ///< the rate at the last step and after it
  std::int64_t warmup = 0;  ///< steps
  std::int64_t steps = 0;   ///< of the whole training
  std::int64_t first = 0;   ///< the step to begin with: where a resumed run goes on

  float operator()(std::int64_t step) const {
    check();
    if (step < warmup)
      return static_cast<float>(static_cast<double>(peak) * static_cast<double>(step + 1) /
                                static_cast<double>(warmup));
    const auto length = std::max<std::int64_t>(steps - 1 - warmup, 1);
    const double done = std::min(static_cast<double>(step - warmup) / static_cast<double>(length), 1.0);
    return static_cast<float>(static_cast<double>(floor) +
                              Shape::remaining(done) * (static_cast<double>(peak) - static_cast<double>(floor)));
  }

  struct Step {
    std::int64_t step;
    float rate;
  };
  struct Iterator {
    const Schedule* schedule;
    std::int64_t step;
    Step operator*() const { return {step, (*schedule)(step)}; }
    Iterator& operator++() {
      ++step;
      return *this;
    }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.step == b.step; }
  };
  Iterator begin() const {
    check();
    return {this, std::min(first, steps)};
  }
  Iterator end() const { return {this, steps}; }

  /// Throws ConfigError.
  void check() const {
    if (!(peak >= 0 && std::isfinite(peak))) throw ConfigError(text("a learning rate must be at least 0, got ", peak));
    if (!(floor >= 0 && floor <= peak))
      throw ConfigError(text("the last learning rate must be from 0 to the peak of ", peak, ", got ", floor));
    if (steps < 0 || first < 0) throw ConfigError(text("steps count from 0, got ", std::min(steps, first)));
    if (warmup < 0 || warmup > steps)
      throw ConfigError(
          text("a warm-up of ", warmup, " steps does not fit a training of ", steps, " steps; use at most ", steps));
  }
};

struct CosineShape {
  static double remaining(double done) { return 0.5 * (1 + std::cos(std::numbers::pi * done)); }
};
struct LinearShape {
  static double remaining(double done) { return 1 - done; }
};
struct ConstantShape {
  static double remaining(double) { return 1; }
};

}  // namespace detail

using Cosine = detail::Schedule<detail::CosineShape>;
using LinearDecay = detail::Schedule<detail::LinearShape>;
using Constant = detail::Schedule<detail::ConstantShape>;

}  // namespace zeropp
