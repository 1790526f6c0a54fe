// SPDX-License-Identifier: Apache-2.0
// Settings of a sharded model and of its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <zeropp/layers/context_shard.hpp>
#include <zeropp/parallel/sharding/bucketed_reducer.hpp>
#include <zeropp/parallel/sharding/stage.hpp>

namespace zeropp {

struct ShardedOptions {
  std::uint64_t seed = 1337;
  Reduction reduction = Reduction::every_micro_batch;
  /// Units gathered ahead of the running one (stage 3). Not said: 2 on a GPU, where that goes on beside computing, and
  /// 0 on the host, where it would only take memory.
  std::optional<int> prefetch = {};
  std::size_t bucket_bytes = BucketOptions{}.bucket_bytes;
  ContextAttention context_attention = ContextAttention::ulysses;  ///< on a mesh with several context ranks
  /// On a GPU with one rank (collectives of several are numbered and watched one by one): the passes of a training step
  /// are captured as a CUDA graph, at the third of equal ones, whose batches have the same size, place, number of
  /// labels and loss scale; others run as ever. So do passes that draw random numbers (dropout). Layers must not wait
  /// for the GPU, nor hand kernels numbers that change from step to step, unless Context::random draws them. Choices of
  /// kernels are those of the capture.
  bool graph = false;

  /// What the ranks of a model must agree on, beside its type.
  std::string words() const {
    return text("seed ", seed, " reduction ", static_cast<int>(reduction), " bucket ", bucket_bytes, " context ",
                name_of(context_attention));
  }
};

struct TrainOptions {
  std::int64_t micro_batches = 1;  ///< the batch's rows are cut into so many passes; their gradients add up
  /// Factor on all gradients of activations and weights, for types that hold no small ones: see train/loss_scale.hpp.
  /// The loss, the norm that clip measures and FusedAdam's step are without it.
  float loss_scale = 1;
};

}  // namespace zeropp
