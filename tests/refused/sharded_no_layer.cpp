// SPDX-License-Identifier: Apache-2.0
// A type that is no layer cannot be sharded.
#include <zeropp/parallel/sharding/sharded.hpp>

#include "scale.hpp"

using namespace zeropp;

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
