// SPDX-License-Identifier: Apache-2.0
// The host as a device: operations run at once, on the caller's thread and the workers of this rank.
#pragma once

#include <cstring>

#include <zeropp/device/device.hpp>
#include <zeropp/device/workers.hpp>

namespace zeropp {

struct CpuOptions {
  int threads = 1;               ///< compute threads of this rank
  std::size_t memory_limit = 0;  ///< bytes; 0: what the host gives
};

class Cpu {
 public:
  static constexpr bool dry = false;
  explicit Cpu(CpuOptions options = {})
      : workers_(options.threads), pool_(std::make_unique<HostMemory>(), {.limit = options.memory_limit}) {}

  Pool& pool() { return pool_; }
  int threads() const { return workers_.threads(); }

  template <class Body>
  void run(const Cost&, Body&& body) {
    body(workers_);
  }

  void upload(void* to, const void* from, std::size_t bytes) {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void download(void* to, const void* from, std::size_t bytes) { upload(to, from, bytes); }
  void synchronize() {}

 private:
  Workers workers_;
  Pool pool_;
};
static_assert(Device<Cpu>);

}  // namespace zeropp
