// SPDX-License-Identifier: Apache-2.0
// How the elements of a parameter begin.
#pragma once

#include <cstdint>

#include <zeropp/base/random.hpp>

namespace zeropp {

/// A function of the seed, the parameter's name and the element's index in the
/// whole tensor, so it depends on neither the rank nor the number of ranks.
struct Init {
  enum class Kind { constant, normal, uniform } kind = Kind::constant;
  float scale = 0;  ///< the constant; the standard deviation; the half width of the interval around 0

  static Init constant(float value) { return {Kind::constant, value}; }
  static Init normal(float deviation) { return {Kind::normal, deviation}; }
  static Init uniform(float half_width) { return {Kind::uniform, half_width}; }

  float operator()(const Random& random, std::int64_t index) const {
    const auto i = static_cast<std::uint64_t>(index);
    switch (kind) {
      case Kind::constant: return scale;
      case Kind::normal: return scale * static_cast<float>(random.normal(i));
      case Kind::uniform: return scale * (2 * random.uniform(i) - 1);
    }
    return 0;
  }
};

}  // namespace zeropp
