// SPDX-License-Identifier: Apache-2.0
// The argument of Repeat must be a layer.
#include <zeropp/layers/repeat.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>

#include "scale.hpp"

using namespace zeropp;

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
