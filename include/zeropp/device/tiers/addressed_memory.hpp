// SPDX-License-Identifier: Apache-2.0
// The blocks of a tier whose bytes have addresses: plain memory of the host, or page-locked.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include <zeropp/base/error.hpp>
#include <zeropp/device/tiers/tier.hpp>

namespace zeropp::detail {

class AddressedMemory final : public TierMemory {
 public:
  AddressedMemory(Home home, std::unique_ptr<Memory> memory) : home_(home), memory_(std::move(memory)) {}

  Place take(std::size_t bytes, Purpose purpose) override {
    const std::lock_guard lock(mutex_);
    auto* block = memory_->allocate(bytes);
    if (!block)
      throw MemoryError(text("no room for ", bytes, " B of ", purpose_names[static_cast<std::size_t>(purpose)],
                             " on the tier '", name_of(home_), "': the host gives no more than the ", taken_,
                             " B that are in use; keep less there, or use another tier"));
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
  std::mutex mutex_;
  std::unique_ptr<Memory> memory_;
  std::size_t taken_ = 0;
};

}  // namespace zeropp::detail
