// SPDX-License-Identifier: Apache-2.0
// Copies between a device's memory and the host's, in one direction: how each kind of device makes them. A device of
// another kind gives a specialisation of Copies (for Cuda: cuda/copies.hpp).
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/device/home.hpp>

namespace zeropp {

/// Blocks of every tier begin at a page: what disks ask of direct access, and more than any device asks for.
inline constexpr std::size_t page = 4096;
constexpr std::size_t whole_pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }

/// The host's memory in pages. Checked builds fill fresh memory with NaN patterns.
class PageMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    auto* block = static_cast<std::byte*>(std::aligned_alloc(page, whole_pages(bytes)));
    if (checked && block) std::memset(block, 0xff, whole_pages(bytes));
    return block;
  }
  void deallocate(std::byte* block, std::size_t) noexcept override { std::free(block); }
};

namespace detail {

/// The event of copies that are over when their calls return.
struct NoEvent {
  void record(void*) {}
  void hold(void*) const {}
  void wait() const {}
  bool done() const { return true; }
};

template <class D>
class Copies {
  static_assert(D::dry,
                "zeropp: this device has no copies to and from tiers; for Cuda include "
                "<zeropp/device/tiers/cuda/copies.hpp>");
};

/// The host copies at once, on the thread that calls: lanes call on threads of their own.
template <>
class Copies<Cpu> {
 public:
  static constexpr bool enqueues = false;  ///< whether copies go on after their calls, in the order of a stream
  static constexpr bool reaches(Home home) { return home != Home::disk; }  ///< without a staging buffer
  static constexpr Home staging = Home::host;
  using PinnedMemory = PageMemory;
  using HostMemory = PageMemory;
  using Event = NoEvent;

  explicit Copies(Cpu&) {}
  void* stream() const { return nullptr; }
  void* computing() const { return nullptr; }
  void begin() const {}         ///< before each operation, on the rank's thread: throws where none may begin
  void begin_thread() const {}  ///< on each thread that copies
  void copy(void* to, const void* from, std::size_t bytes) const { std::memcpy(to, from, bytes); }
};

/// Nothing is copied.
template <class D>
requires D::dry class Copies<D> {
 public:
  static constexpr bool enqueues = requires { requires D::cuda; };
  static constexpr bool reaches(Home home) { return enqueues ? home == Home::pinned : home != Home::disk; }
  static constexpr Home staging = enqueues ? Home::pinned : Home::host;
  using PinnedMemory = DryMemory;
  using HostMemory = DryMemory;
};

}  // namespace detail

}  // namespace zeropp
