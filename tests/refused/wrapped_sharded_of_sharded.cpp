// SPDX-License-Identifier: Apache-2.0
// State partitioned twice.
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>

using namespace zeropp;

struct Block : Sequential<LayerNorm, LayerNorm> {
  Block();
};
struct Gpt : Sequential<LayerNorm, Repeat<Block>, LayerNorm> {
  Gpt();
};

#ifdef REFUSED
// refused: Sharded<Sharded<L>>: state is partitioned once; write Sharded<L, Stage>
auto use(Sharded<Sharded<Gpt, Stage::none>, Stage::parameters>& model) { return &model.layer(); }
#else
auto use(Sharded<Gpt, Stage::parameters>& model) { return &model.layer(); }
#endif
