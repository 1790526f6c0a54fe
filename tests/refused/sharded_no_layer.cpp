// SPDX-License-Identifier: Apache-2.0
// A type that is no layer cannot be sharded.
#include <array>

#include <zeropp/parallel/sharding/sharded.hpp>

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
// refused: Sharded<L, Stage>: L is not a layer. A layer declares parameters(), or holds layers
struct Model {
  float weight = 1;
};
#else
using Model = Scale;
#endif

std::int64_t use(Comm comm, Cpu& cpu) {
  Sharded<Model, Stage::gradients> model{comm, cpu, Model{}};
  return model.parameters();
}
