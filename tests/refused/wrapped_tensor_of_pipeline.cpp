// SPDX-License-Identifier: Apache-2.0
// Layers shared among tensor ranks after stages were cut.
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>

using namespace zeropp;

struct Block : Sequential<LayerNorm, LayerNorm> {
  Block();
};
struct Gpt : Sequential<LayerNorm, Repeat<Block>, LayerNorm> {
  Gpt();
};

#ifdef REFUSED
// refused: TensorParallel<PipelineStage<L>> and TensorParallel<Sharded<L>>: layers are shared first; write
TensorParallel<PipelineStage<Gpt>> use(const TensorOptions& o, PipelineStage<Gpt> stage) {
  return {o, std::move(stage)};
}
#else
PipelineStage<TensorParallel<Gpt>> use(const PipelineOptions& p, const TensorOptions& o, Gpt gpt) {
  return {p, {o, std::move(gpt)}};
}
#endif
