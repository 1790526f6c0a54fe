// SPDX-License-Identifier: Apache-2.0
// A Sequential holds layers only, and says so under Sharded too.
#include <zeropp/layers/sequential.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>

#include "scale.hpp"

using namespace zeropp;

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
