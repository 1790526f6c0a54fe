// SPDX-License-Identifier: Apache-2.0
// A Sequential holds layers only, and says so under Sharded too.
#include <array>

#include <zeropp/layers/sequential.hpp>
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
// refused: Sequential<...> holds a type that is not a layer: a layer declares parameters(), or holds layers
using Inner = int;
#else
using Inner = Scale;
#endif

std::int64_t use(Comm comm, Cpu& cpu) {
  using Model = Sequential<Scale, Inner>;
  Sharded<Model, Stage::parameters> model{comm, cpu, Model{Scale{}, Inner{}}};
  return model.parameters();
}
