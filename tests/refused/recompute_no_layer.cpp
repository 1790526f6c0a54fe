// SPDX-License-Identifier: Apache-2.0
// The argument of Recompute must be a layer.
#include <zeropp/layers/recompute.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>

#include "scale.hpp"

using namespace zeropp;

#ifdef REFUSED
// refused: Recompute<L>: L is not a layer. A layer declares parameters(), or holds layers
using Block = char*;
#else
using Block = Scale;
#endif

std::int64_t use(Comm comm, Cpu& cpu) {
  Sharded<Recompute<Block>, Stage::none> model{comm, cpu, Recompute<Block>{}};
  return model.parameters();
}
