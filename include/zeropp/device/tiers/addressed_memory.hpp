// SPDX-License-Identifier: Apache-2.0
// The blocks of a tier whose bytes have addresses: plain memory of the host, or page-locked.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include <zeropp/base/error.hpp>
#include <zeropp/device/tiers/host_room.hpp>
#include <zeropp/device/tiers/tier.hpp>

namespace zeropp::detail {

class AddressedMemory final : public TierMemory {
 public:
  /// A `dry` one has no memory behind its addresses.
  AddressedMemory(Home home, bool dry, std::unique_ptr<Memory> memory)
      : home_(home), dry_(dry), memory_(std::move(memory)) {}

  Place take(std::size_t bytes, Purpose purpose) override {
    const std::lock_guard lock(mutex_);
    const auto room = dry_ ? bytes : host_room();
    auto* block = bytes <= room ? memory_->allocate(bytes) : nullptr;
    if (!block)
      throw MemoryError(text("no room for ", bytes, " B of ", purpose_names[static_cast<std::size_t>(purpose)],
                             " on the tier '", name_of(home_), "': ", room, " B of the host are free, and ", taken_,
                             " B are in use; keep less there, or use another tier"));
    taken_ += bytes;
    return {.address = block};
  }
  void give(Place place, std::size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    memory_->deallocate(place.address, bytes);
    taken_ -= bytes;
  }

  std::byte* read(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) override {
    std::memcpy(buffer, place.address + offset, bytes);
    return buffer;
  }
  std::byte* prepare(Place, std::size_t, std::size_t, std::byte* buffer) override { return buffer; }
  void write(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) override {
    std::memcpy(place.address + offset, buffer, bytes);
  }

 private:
  Home home_;
  bool dry_;
  std::mutex mutex_;
  std::unique_ptr<Memory> memory_;
  std::size_t taken_ = 0;
};

}  // namespace zeropp::detail
