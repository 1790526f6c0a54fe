// SPDX-License-Identifier: Apache-2.0
// Stages cut out of a model whose state is partitioned.
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
// refused: PipelineStage<Sharded<L>>: state is partitioned last; write Sharded<PipelineStage<L>, Stage>
std::string use(PipelineStage<Sharded<Gpt, Stage::none>>& stage) { return stage.describe(); }
#else
std::string use(Sharded<PipelineStage<Gpt>, Stage::none>& model) { return model.layer().describe(); }
#endif
