// SPDX-License-Identifier: Apache-2.0
// How the passes of a model run on one rank. Here those of a model that no pipeline cuts: all layers, a micro-batch
// after the other. A pipeline's (pipeline/pipeline_run.hpp) follow its schedule.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/layers/loss.hpp>
#include <zeropp/layers/run.hpp>
#include <zeropp/parallel/micro_batches.hpp>
#include <zeropp/parallel/sharding/model_parameters.hpp>

namespace zeropp {

/// `engine` is a ShardedEngine, `layer` the layers that it owns.
template <class L>
struct Runner {
  static_assert(!Pipelined<L>, "Sharded<PipelineStage<L>, Stage>: include <zeropp/parallel/pipeline/pipeline_run.hpp>");

  /// Forward and backward of all micro-batches; their losses are added to `total`.
  template <class Engine>
  static void train(Engine& engine, L&, const MicroBatches& batches, Loss& total) {
    for (std::int64_t m = 0; m < batches.count(); ++m) {
      typename Engine::Context ctx(engine.device(), batches.run(m));
      engine.begin_micro_batch(m == 0, m + 1 == batches.count());
      auto out = engine.forward(ctx, batches.tokens(m));
      if constexpr (ends_in_loss<decltype(out.output)>()) {
        engine.backward(ctx, 1.0f, std::move(out.saved));
        total.add(out.output);
      }
    }
  }
  /// Forward of one micro-batch.
  template <class Engine>
  static Loss evaluate(Engine& engine, L&, const MicroBatches& batches) {
    typename Engine::Context ctx(engine.device(), batches.run(0));
    auto out = engine.forward(ctx, batches.tokens(0));
    if constexpr (ends_in_loss<decltype(out.output)>())
      return out.output;
    else
      return {};
  }

  /// The parameters of the whole model, over all ranks; tied ones are left out.
  static std::vector<ModelParameter> model_parameters(L& layer) { return parameters_of(layer); }
  /// The parameters of a model in stages with the tied ones, which Parameter::order counts; otherwise 0.
  static int parameters_in_order(L&) { return 0; }
  /// The ranks of its stages; null where no pipeline cuts it.
  static const Comm* stages(L&) { return nullptr; }
  static int last_stage(L&) { return 0; }
  /// Which part of the model the rank has.
  static std::string describe(L&) { return "all"; }

 private:
  template <class Output>
  static constexpr bool ends_in_loss() {
    constexpr bool loss = std::is_same_v<Output, Loss>;
    static_assert(
        loss || detail::is_refused<Output>,
        "train() and evaluate() need a model that ends in a loss: put a head (LmHead, or a layer of yours whose "
        "output is a Loss) last");
    return loss;
  }
};

}  // namespace zeropp
