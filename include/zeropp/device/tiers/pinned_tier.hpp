// SPDX-License-Identifier: Apache-2.0
// The tier of page-locked memory of the host, which a GPU copies at the rate of its bus and beside what computes. The
// host as a device has no use for page-locking: there it is plain memory, in books of its own.
#pragma once

#include <zeropp/device/tiers/direct_tier.hpp>

namespace zeropp {

struct PinnedTierOptions {
  std::size_t limit = 0;  ///< bytes; 0: what the host gives
};

template <class D>
class PinnedTier final : public detail::DirectTier<D> {
 public:
  explicit PinnedTier(D& device, PinnedTierOptions options = {})
      : detail::DirectTier<D>(device, Home::pinned, options.limit) {}
};

}  // namespace zeropp
