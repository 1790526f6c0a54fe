// SPDX-License-Identifier: Apache-2.0
// The smallest layer with a parameter, for cases that are about something else.
#pragma once

#include <array>

#include <zeropp/device/tensor.hpp>
#include <zeropp/layers/layer.hpp>

struct Scale {
  zeropp::Parameter weight{.name = "scale", .shape = {1}};
  auto parameters() { return std::array{&weight}; }
  template <class C, int Rank>
  auto forward(C&, zeropp::Tensor<float, Rank> x) {
    return zeropp::Forward{x, zeropp::None{}};
  }
  template <class C, int Rank>
  auto backward(C&, zeropp::Tensor<float, Rank> dy, zeropp::None) {
    return dy;
  }
};
