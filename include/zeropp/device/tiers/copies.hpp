// SPDX-License-Identifier: Apache-2.0
// Copies between a device's memory and the host's, in one direction: how each kind of device makes them. A device of
// another kind gives a specialisation of Copies (for Cuda: cuda/copies.hpp).
#pragma once

#include <stdlib.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstring>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/device/home.hpp>

namespace zeropp {

/// Blocks of every tier begin at a page: what disks ask of direct access, and more than any device asks for.
inline constexpr std::size_t page_size = 4096;
constexpr std::size_t whole_pages(std::size_t bytes) { return (bytes + page_size - 1) / page_size * page_size; }

/// The host's memory in pages, large ones where they fit. It is used at once: addresses that Linux has handed out are
/// not yet memory. Checked builds fill it with NaN patterns.
class PageMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    constexpr std::size_t large = std::size_t{2} << 20;
    const auto whole = whole_pages(bytes);
    void* found = nullptr;
    if (::posix_memalign(&found, whole < large ? page_size : large, whole) != 0) return nullptr;
    static_cast<void>(::madvise(found, whole, MADV_HUGEPAGE));  // a wish
    auto* block = static_cast<std::byte*>(found);
    for (std::size_t at = 0; at < whole; at += page_size) block[at] = std::byte{};
    if (checked) std::memset(block, 0xff, whole);
    return block;
  }
  void deallocate(std::byte* block, std::size_t) noexcept override { ::free(block); }
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
  using StagingMemory = PageMemory;
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
  using StagingMemory = DryMemory;
};

}  // namespace detail

}  // namespace zeropp
