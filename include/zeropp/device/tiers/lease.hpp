// SPDX-License-Identifier: Apache-2.0
// The use of a block of a tier for a while: it is fetched into temporary memory of the device when the lease begins,
// and stored when the lease ends, if it was written. Leases take the place of pointers that are valid for ever.
//
//   Lease lease(tier, device.pool(), block);      // the fetch begins, beside what computes
//   auto moments = lease.write<float>();          // what computes from now on finds them; they go back at the end
//   kernels::update(device, moments);
//   Pending back = lease.end();                   // or the end of its life, which waits
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include <zeropp/device/pool.hpp>
#include <zeropp/device/tiers/tier.hpp>

namespace zeropp {

struct LeaseOptions {
  std::size_t offset = 0;               ///< of the part in the block
  std::size_t bytes = ~std::size_t{0};  ///< of the part; up to the end of the block
  bool fetch = true;                    ///< false: the part will be written as a whole, and is not fetched
  Purpose purpose = Purpose::buffers;   ///< of the device memory
};

/// The tier and the pool must outlive it. Neither waits on the host beyond what the tier's Pendings do.
class Lease {
 public:
  /// The part of the block is fetched after `after`.
  Lease(Tier& tier, Pool& pool, TierBlock block, LeaseOptions options = {}, Pending after = {})
      : tier_(&tier), block_(std::move(block)), offset_(std::min(options.offset, block_.size())) {
    if (options.offset > block_.size() ||
        (options.bytes != ~std::size_t{0} && options.bytes > block_.size() - options.offset))
      throw ConfigError(text("a lease asks for ", options.bytes, " B from byte ", options.offset, " on of a block of ",
                             block_.size(), " B"));
    bytes_ = std::min(options.bytes, block_.size() - offset_);
    memory_ = pool.take_temporary(bytes_, options.purpose);
    coming_ = options.fetch ? tier.fetch(block_, offset_, place(), std::move(after)) : std::move(after);
    coming_.hold(memory_);
  }
  Lease(Lease&& other) noexcept
      : tier_(other.tier_),
        block_(std::exchange(other.block_, {})),
        offset_(other.offset_),
        bytes_(other.bytes_),
        memory_(std::exchange(other.memory_, {})),
        coming_(std::move(other.coming_)),
        written_(std::exchange(other.written_, false)) {}
  Lease& operator=(Lease&&) = delete;
  /// Ends it. An error of the store is thrown by the tier's next copy.
  ~Lease() {
    try {
      end().wait();
    } catch (...) {  // kept by the tier
    }
  }

  /// The part, for kernels that read it. Work enqueued for computing from now on finds it.
  template <class T>
  std::span<const T> read() {
    coming_.wait();
    return {reinterpret_cast<const T*>(memory_.get()), bytes_ / sizeof(T)};
  }
  /// The same for kernels that write it: it is stored when the lease ends.
  template <class T>
  std::span<T> write() {
    coming_.wait();
    written_ = true;
    return {reinterpret_cast<T*>(memory_.get()), bytes_ / sizeof(T)};
  }

  /// Stores what was written. The Pending holds the device memory until the tier has read it; what comes next may run
  /// after it. Nothing is left to do afterwards.
  [[nodiscard]] Pending end() {
    const auto memory = std::exchange(memory_, {});
    if (!memory) return {};
    auto last = std::exchange(written_, false)
                    ? tier_->store(block_, offset_, {memory.get(), bytes_}, std::move(coming_))
                    : std::move(coming_);
    last.hold(memory);
    return last;
  }

 private:
  std::span<std::byte> place() const { return {memory_.get(), bytes_}; }

  Tier* tier_;
  TierBlock block_;
  std::size_t offset_, bytes_ = 0;
  Storage memory_;
  Pending coming_;
  bool written_ = false;
};

}  // namespace zeropp
