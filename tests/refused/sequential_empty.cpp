// SPDX-License-Identifier: Apache-2.0
// A Sequential of nothing.
#include <array>

#include <zeropp/device/tensor.hpp>
#include <zeropp/layers/sequential.hpp>

using namespace zeropp;

struct Scale {
  Parameter weight{.name = "scale", .shape = {1}};
  auto parameters() { return std::array{&weight}; }
  template <class C>
  auto forward(C&, Tensor<float, 2> x) {
    return Forward{x, None{}};
  }
  template <class C>
  auto backward(C&, Tensor<float, 2> dy, None) {
    return dy;
  }
};

#ifdef REFUSED
// refused: Sequential needs at least one layer
auto model() { return Sequential<>{}; }
#else
auto model() { return Sequential<Scale>{Scale{}}; }
#endif
