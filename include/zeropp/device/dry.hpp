// SPDX-License-Identifier: Apache-2.0
// The dry device: counts bytes, flops and kernels of the engine that runs on it, and runs none of them. The plan comes
// from here, so it cannot disagree with the engine.
#pragma once

#include <cstdint>

#include <zeropp/device/device.hpp>

namespace zeropp {

class Dry {
 public:
  static constexpr bool dry = true;
  explicit Dry(PoolOptions options = {}) : pool_(std::make_unique<DryMemory>(), options) {}

  Pool& pool() { return pool_; }

  template <class Body>
  void run(const Cost& cost, Body&&) {
    flops_ += cost.flops;
    bytes_ += cost.bytes;
    ++kernels_;
  }

  void upload(void*, const void*, std::size_t) {}
  void download(void*, const void*, std::size_t) {}
  void synchronize() {}

  double flops() const { return flops_; }
  double bytes() const { return bytes_; }
  std::int64_t kernels() const { return kernels_; }

 private:
  Pool pool_;
  double flops_ = 0, bytes_ = 0;
  std::int64_t kernels_ = 0;
};
static_assert(Device<Dry>);

}  // namespace zeropp
