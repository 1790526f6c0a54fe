// SPDX-License-Identifier: Apache-2.0
// The backends of attention that tests go through.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <zeropp/kernels/attention.hpp>

namespace zeropp::test {

inline std::string name_of(kernels::AttentionBackend backend) {
  using enum kernels::AttentionBackend;
  return backend == cudnn        ? "cudnn"
         : backend == warpgroups ? "warpgroups"
         : backend == tiles      ? "tiles"
         : backend == plain      ? "plain"
                                 : "best";
}

/// Our own kernels that can do heads of this size, in bf16 or f16, on this GPU.
inline std::vector<kernels::AttentionBackend> own_backends(const Cuda& gpu, std::int64_t size) {
  using enum kernels::AttentionBackend;
  if (size != 64 && size != 128) return {plain};
  if (gpu.properties().compute_capability != 90) return {plain, tiles};
  return {plain, tiles, warpgroups};
}

}  // namespace zeropp::test
