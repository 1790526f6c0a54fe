// SPDX-License-Identifier: Apache-2.0
// Where bytes come from, and what they are for. Every byte of a rank is counted under one purpose.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include <zeropp/base/error.hpp>
#include <zeropp/base/version.hpp>

namespace zeropp {

enum class Purpose : std::uint8_t { weights, gradients, states, activations, buffers };
inline constexpr std::array<std::string_view, 5> purpose_names{"weights", "gradients", "states", "activations",
                                                               "buffers"};

/// Bytes by purpose.
struct Bytes {
  std::array<std::size_t, purpose_names.size()> by{};

  std::size_t& operator[](Purpose purpose) { return by[static_cast<std::size_t>(purpose)]; }
  std::size_t operator[](Purpose purpose) const { return by[static_cast<std::size_t>(purpose)]; }
  std::size_t total() const {
    std::size_t sum = 0;
    for (auto bytes : by) sum += bytes;
    return sum;
  }
  friend bool operator==(const Bytes&, const Bytes&) = default;
};

/// "weights 4096 B, states 8192 B" (purposes that hold nothing are left out)
inline std::string describe(const Bytes& bytes) {
  std::string out;
  for (std::size_t i = 0; i < purpose_names.size(); ++i)
    if (bytes.by[i]) out += text(out.empty() ? "" : ", ", purpose_names[i], " ", bytes.by[i], " B");
  return out.empty() ? "nothing" : out;
}

/// Blocks of a pool begin at multiples of this: a cache line, and a whole vector register.
inline constexpr std::size_t alignment = 64;
constexpr std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

/// A source of aligned blocks. One rank's thread uses it at a time.
class Memory {
 public:
  virtual ~Memory() = default;
  /// Null if there is not enough.
  virtual std::byte* allocate(std::size_t bytes) = 0;
  virtual void deallocate(std::byte* block, std::size_t bytes) noexcept = 0;
};

/// The host's heap. Checked builds fill fresh memory with NaN patterns.
class HostMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    auto* block = static_cast<std::byte*>(std::aligned_alloc(alignment, aligned(bytes)));
    if (checked && block) std::memset(block, 0xff, aligned(bytes));
    return block;
  }
  void deallocate(std::byte* block, std::size_t) noexcept override { std::free(block); }
};

/// Addresses without memory behind them, for plans: distinct, aligned, never to be read.
class DryMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    auto* block = reinterpret_cast<std::byte*>(next_);
    next_ += aligned(bytes) + alignment;
    return block;
  }
  void deallocate(std::byte*, std::size_t) noexcept override {}

 private:
  std::uintptr_t next_ = std::uintptr_t{1} << 46;
};

}  // namespace zeropp
