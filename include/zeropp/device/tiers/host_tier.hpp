// SPDX-License-Identifier: Apache-2.0
// The tier of the host's plain memory: as large as the machine allows. A GPU does not reach it, so its copies go
// through page-locked buffers and cost the host a copy more; PinnedTier does without.
#pragma once

#include <zeropp/device/tiers/direct_tier.hpp>
#include <zeropp/device/tiers/staged_tier.hpp>

namespace zeropp {

struct HostTierOptions {
  std::size_t limit = 0;  ///< bytes; 0: what the host gives
};

/// Where the device reaches the host's memory: the host as a device.
template <class D>
class HostTier final : public detail::DirectTier<D> {
 public:
  explicit HostTier(D& device, HostTierOptions options = {})
      : detail::DirectTier<D>(device, Home::host, options.limit) {}
};

/// Beside a GPU four threads for each direction copy, 4 MiB at a time.
template <class D>
requires(!detail::Copies<D>::reaches(Home::host))  //
    class HostTier<D> final : public detail::StagedTier<D> {
 public:
  explicit HostTier(D& device, HostTierOptions options = {})
      : detail::StagedTier<D>(device, Home::host, detail::addressed_memory<D>(Home::host), options.limit,
                              {.block_size = std::size_t{4} << 20, .requests = 4}) {}
};

}  // namespace zeropp
