// SPDX-License-Identifier: Apache-2.0
// `Sharded<L, Stage>`: a model whose training state is partitioned over the ranks of a communicator. It owns weights
// and gradients; FusedAdam adds the optimizer's states.
//
//   Sharded<Gpt, Stage::gradients> model{comm, device, Gpt{config}};
//   FusedAdam adam{model, {.weight_decay = 0.1f}};
//   Loss loss = model.train(batch, {.micro_batches = 4});
//   adam.step(rate, clip_by_global_norm(model, 1.0f));
#pragma once

#include <utility>

#include <zeropp/parallel/sharding/sharded_engine.hpp>

namespace zeropp {

template <class L, Stage S, Precision P = Fp32, Device D = Cpu>
class Sharded : public ShardedEngine<L, P, D> {
 public:
  /// Takes memory for the rank's part of the state and draws the first weights. `comms` is a Comm of data ranks, or a
  /// Mesh: the state is partitioned over its data and context axes; parallelize() lays layers over its other axes, and
  /// an axis that no layer uses is refused. Context, tensor and pipeline ranks give the same batch each. A collective:
  /// ranks whose models or settings differ are refused. Throws ConfigError, MemoryError, CommError.
  Sharded(const ModelComms& comms, D& device, L layer, ShardedOptions options = {})
      : ShardedEngine<L, P, D>(comms, device, std::move(layer), S, std::move(options)) {}
};

/// The same with layers and device deduced, so that another device or precision changes nothing else:
///   auto model = sharded<Stage::gradients, Bf16>(mesh, device, Gpt{config});
template <Stage S, Precision P = Fp32, Device D, class L>
Sharded<L, S, P, D> sharded(const ModelComms& comms, D& device, L layer, ShardedOptions options = {}) {
  return Sharded<L, S, P, D>(comms, device, std::move(layer), std::move(options));
}

}  // namespace zeropp
