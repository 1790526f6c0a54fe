// SPDX-License-Identifier: Apache-2.0
// What is repeated must be a layer.
#include <array>

#include <zeropp/layers/repeat.hpp>
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
// refused: Repeat<L>: L is not a layer. A layer declares parameters(), or holds layers
using Block = double;
#else
using Block = Scale;
#endif

std::int64_t use(Comm comm, Cpu& cpu) {
  Sharded<Repeat<Block>, Stage::none> model{comm, cpu, Repeat<Block>{}};
  return model.parameters();
}
