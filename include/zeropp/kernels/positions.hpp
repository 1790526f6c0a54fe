// SPDX-License-Identifier: Apache-2.0
// Where in their sequence the positions lie that are here: all of them, or one or two runs where ranks share the
// sequence. Numbers of elements in the whole batch follow from that.
#pragma once

#include <algorithm>
#include <cstdint>

namespace zeropp::kernels {

inline constexpr std::int64_t unbounded = std::int64_t{1} << 62;

/// Position t here is position [t] of the whole sequence: `length` of them from `first` on, the others from `second`
/// on.
struct Positions {
  std::int64_t first = 0, length = unbounded, second = 0;

  constexpr std::int64_t operator[](std::int64_t t) const { return t < length ? first + t : second + (t - length); }
  /// Those from number `begin` on.
  constexpr Positions from(std::int64_t begin) const {
    return begin < length ? Positions{first + begin, length - begin, second} : Positions{(*this)[begin]};
  }
};

/// The number in the whole batch of each element of [B, t, ...]: what random numbers are indexed by.
struct ElementNumbers {
  std::int64_t first = 0;                            ///< of the first sequence here: its place times `whole`
  std::int64_t here = unbounded, whole = unbounded;  ///< elements of a sequence, here and in all
  std::int64_t row = 1;                              ///< elements of a position
  Positions positions = {};

  /// Element i has number `begin`, and those behind it the numbers that follow, `count` of them in all.
  struct Run {
    std::int64_t begin, count;
  };
  constexpr Run run(std::int64_t i) const {
    if (here == whole && positions.first == 0 && positions.length >= here / row) return {first + i, unbounded};
    const auto sequence = i / here, at = i % here, t = at / row;
    const auto end = t < positions.length ? std::min(positions.length, here / row) : here / row;
    return {first + sequence * whole + positions[t] * row + at % row, end * row - at};
  }
};

}  // namespace zeropp::kernels
