// SPDX-License-Identifier: Apache-2.0
// Simulated time: the clock of one rank.
#pragma once

#include <algorithm>

namespace zeropp {

/// The time that a simulated rank has spent, by kind, in seconds. Its device adds kernels, its communicators the rest.
class SimulatedClock {
 public:
  double now() const { return computing_ + communicating_ + waiting_; }
  double computing() const { return computing_; }
  double communicating() const { return communicating_; }  ///< while nothing was computed
  double waiting() const { return waiting_; }              ///< for other ranks

  void compute(double seconds) { computing_ += seconds; }
  void communicate(double seconds) { communicating_ += seconds; }
  void wait_until(double moment) { waiting_ += std::max(0.0, moment - now()); }
  /// For communication that was begun earlier.
  void wait_communication(double moment) { communicating_ += std::max(0.0, moment - now()); }

 private:
  double computing_ = 0, communicating_ = 0, waiting_ = 0;
};

}  // namespace zeropp
