// SPDX-License-Identifier: Apache-2.0
// The home of a kind of state, the tier where it lives: the device's memory, the host's, page-locked memory of the
// host, or a disk; and the books of the bytes that a rank has in each.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string_view>

#include <zeropp/device/memory.hpp>

namespace zeropp {

enum class Home : std::uint8_t { device, host, pinned, disk };
inline constexpr std::array<std::string_view, 4> home_names{"device", "host", "pinned", "disk"};
constexpr std::string_view name_of(Home home) { return home_names[static_cast<std::size_t>(home)]; }

/// The bytes that a rank has in a home.
struct HomeBytes {
  std::size_t now = 0, peak = 0;
  Bytes by;  ///< now, by purpose; of the device: what is kept
};

namespace detail {

/// The books of the homes beside the device. Lanes give blocks back on threads of their own.
class HomeBooks {
 public:
  void take(Home home, std::size_t bytes, Purpose purpose) {
    const std::lock_guard lock(mutex_);
    auto& of = homes_[static_cast<std::size_t>(home)];
    of.now += bytes;
    of.by[purpose] += bytes;
    of.peak = std::max(of.peak, of.now);
  }
  void give(Home home, std::size_t bytes, Purpose purpose) noexcept {
    const std::lock_guard lock(mutex_);
    auto& of = homes_[static_cast<std::size_t>(home)];
    of.now -= bytes;
    of.by[purpose] -= bytes;
  }
  HomeBytes of(Home home) const {
    const std::lock_guard lock(mutex_);
    return homes_[static_cast<std::size_t>(home)];
  }

 private:
  mutable std::mutex mutex_;
  std::array<HomeBytes, home_names.size()> homes_;
};

}  // namespace detail

}  // namespace zeropp
