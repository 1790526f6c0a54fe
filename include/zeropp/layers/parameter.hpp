// SPDX-License-Identifier: Apache-2.0
// A parameter as a layer declares it: a name, a shape, how it begins. Whoever owns the memory (`Sharded`) places it;
// the layer reads it through its context and never knows where it lives, in which precision, or how many ranks share
// it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>

namespace zeropp {

/// How the elements of a parameter begin: a function of the seed, the parameter's name and the element's index in the
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

struct Parameter {
  std::string name;                 ///< unique in a model; the name in a checkpoint
  std::vector<std::int64_t> shape;  ///< C order
  Init init = {};
  bool decay = false;        ///< weight decay applies (by custom: matrices yes, biases and norms no)
  std::string tied_to = {};  ///< not empty: shares the memory of the parameter of that name

  // Where it lives; set by the owner of the memory, null while not resident.
  void* value = nullptr;     ///< Precision::Weight[size()]
  void* gradient = nullptr;  ///< Precision::Gradient[size()]
  int unit = -1;             ///< the unit that owns it
  std::int64_t offset = 0;   ///< its first element in the flat buffer of that unit

  std::int64_t size() const { return element_count(shape); }
};

}  // namespace zeropp
