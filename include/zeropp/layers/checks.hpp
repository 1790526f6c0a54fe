// SPDX-License-Identifier: Apache-2.0
// Checks of the sizes that layers are built with and of the tensors that they are given.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include <zeropp/base/shape.hpp>
#include <zeropp/device/tensor.hpp>

namespace zeropp::detail {

/// A size of a layer: at least 1. Throws ConfigError.
inline std::int64_t positive(std::int64_t size, const std::string& layer, std::string_view what,
                             Where where = Where::here()) {
  if (size < 1) throw ConfigError(text(layer, ": ", what, " must be at least 1, got ", size), where);
  return size;
}

[[noreturn]] inline void refuse_width(std::span<const std::int64_t> shape, std::int64_t width, const std::string& layer,
                                      Where where) {
  throw ConfigError(text(layer, " takes rows of ", width, " elements, got a tensor of shape ", shape_text(shape)),
                    where);
}

/// The last axis of an input must be what the layer was built for. Throws ConfigError.
template <class T, int R>
void expect_width(const Tensor<T, R>& x, std::int64_t width, const std::string& layer, Where where = Where::here()) {
  if (x.extent(-1) != width) refuse_width(x.shape(), width, layer, where);
}

[[noreturn]] inline void refuse_sum(std::span<const std::int64_t> output, std::span<const std::int64_t> input) {
  throw ConfigError(text("Residual: the output of the layers inside has shape ", shape_text(output), ", their input ",
                         shape_text(input), "; only equal shapes can be added"));
}

/// Throws ConfigError: what a residual adds must have one shape.
template <std::size_t Rank>
void expect_addable(const std::array<std::int64_t, Rank>& output, const std::array<std::int64_t, Rank>& input) {
  if (output != input) refuse_sum(output, input);
}

}  // namespace zeropp::detail
