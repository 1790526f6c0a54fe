// SPDX-License-Identifier: Apache-2.0
// Simulated time: the clock of one rank, and a table that says how long a kernel takes on a device that is not here.
#pragma once

#include <algorithm>
#include <string_view>

#include <zeropp/device/device.hpp>

namespace zeropp {

/// What a simulated rank has spent its time with, in seconds. Its device adds kernels, its communicators the rest.
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

/// A device as a table: what its data sheet says, and what fraction of it kernels achieve. A kernel takes as long as
/// its products or its memory traffic, whichever is longer, and its launch.
struct DeviceTable {
  double flops = 312e12;               ///< a second, at the precision of the products (A100, bf16)
  double memory_bandwidth = 2.039e12;  ///< bytes a second (A100 SXM, 80 GB)
  double memory_bytes = 80e9;
  double matmul = 0.7, attention = 0.4;  ///< fractions of `flops`
  double memory = 0.8;                   ///< fraction of `memory_bandwidth`
  double launch = 5e-6;                  ///< seconds before a kernel begins

  double operator()(const Cost& cost) const {
    const bool products = cost.name == "matmul", attends = cost.name.substr(0, 9) == "attention";
    const double rate = products ? matmul * flops : attends ? attention * flops : 0;  // others move bytes
    return std::max(rate > 0 ? cost.flops / rate : 0, cost.bytes / (memory * memory_bandwidth)) + launch;
  }
};

}  // namespace zeropp
