// SPDX-License-Identifier: Apache-2.0
// A whole stage recomputed, instead of its blocks.
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/recompute.hpp>
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
// refused: Recompute<PipelineStage<L>> and Recompute<Sharded<L>>: recompute what is inside, the blocks; write
auto use(Recompute<PipelineStage<Gpt>>& model) { return &model.inner; }
#else
auto use(PipelineStage<Gpt>& model) { return &model; }
#endif
