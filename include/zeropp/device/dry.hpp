// SPDX-License-Identifier: Apache-2.0
// The dry device: counts bytes, flops and kernels of the engine that runs on it, and runs none of them. The plan comes
// from here, so it cannot disagree with the engine; with a table of kernel times, so does the time of a step.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include <zeropp/device/clock.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp {

/// Seconds that a kernel takes: a DeviceTable, or a function of your own.
using KernelTime = std::function<double(const Cost&)>;

class Dry {
 public:
  static constexpr bool dry = true;

  /// Without `time` its clock stands still.
  explicit Dry(PoolOptions options = {}, KernelTime time = {})
      : pool_(std::make_unique<DryMemory>(), options), time_(std::move(time)) {}

  Pool& pool() { return pool_; }
  template <class Body>
  void run(const Cost& cost, Body&&) {
    flops_ += cost.flops;
    bytes_ += cost.bytes;
    ++kernels_;
    if (time_) clock_.compute(time_(cost));
  }

  void upload(void*, const void*, std::size_t) {}
  void download(void*, const void*, std::size_t) {}
  void synchronize() {}

  double flops() const { return flops_; }
  double bytes() const { return bytes_; }
  std::int64_t kernels() const { return kernels_; }
  SimulatedClock& clock() { return clock_; }

 private:
  Pool pool_;
  KernelTime time_;
  SimulatedClock clock_;
  double flops_ = 0, bytes_ = 0;
  std::int64_t kernels_ = 0;
};
static_assert(Device<Dry>);

}  // namespace zeropp
