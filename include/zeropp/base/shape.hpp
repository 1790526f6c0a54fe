// SPDX-License-Identifier: Apache-2.0
// Extents of tensors: 64-bit everywhere, products checked for overflow.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include <zeropp/base/error.hpp>

namespace zeropp {

template <int Rank>
using Extents = std::array<std::int64_t, std::size_t{Rank}>;

/// a × b for sizes. Throws ConfigError if one is negative or the product exceeds 2⁶³ − 1.
inline std::int64_t checked_product(std::int64_t a, std::int64_t b, Where where = Where::here()) {
  std::int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product))
    throw ConfigError(text("a size of ", a, " x ", b, " does not fit in 63 bits; check the extents"), where);
  return product;
}

/// Number of elements of a shape; 1 for no extents, 0 where an extent is 0.
inline std::int64_t element_count(std::span<const std::int64_t> extents, Where where = Where::here()) {
  std::int64_t count = 1;
  for (auto extent : extents) count = checked_product(count, extent, where);
  return count;
}

/// "[2, 3, 4]"
inline std::string shape_text(std::span<const std::int64_t> extents) {
  std::string out = "[";
  for (auto extent : extents) out += text(out.size() > 1 ? ", " : "", extent);
  return out + "]";
}

/// Elements [begin, end) of a flat buffer or of an axis.
struct Range {
  std::int64_t begin = 0, end = 0;

  std::int64_t size() const { return end - begin; }
  Range clipped(Range other) const {
    const auto b = begin > other.begin ? begin : other.begin, e = end < other.end ? end : other.end;
    return b < e ? Range{b, e} : Range{b, b};
  }
  friend bool operator==(const Range&, const Range&) = default;
};

/// `size` elements each: the elements of a range of heads, `offset` further on.
constexpr Range elements_of(Range range, std::int64_t size, std::int64_t offset = 0) {
  return {range.begin * size + offset, range.end * size + offset};
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace zeropp
