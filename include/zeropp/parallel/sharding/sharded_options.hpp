// SPDX-License-Identifier: Apache-2.0
// Settings of a sharded model and of its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <zeropp/comm/settings.hpp>
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
  /// On a GPU with one rank (collectives of several are numbered and watched one by one), the engine captures the passes
  /// of a training step as a CUDA graph. It captures at the third step in a row whose batch has the same size, address,
  /// number of labels and loss scale; other steps, and steps that draw random numbers (dropout), run without a graph.
  /// Layers must not wait for the GPU, nor hand kernels numbers that change from step to step, unless Context::random
  /// draws them. A graph repeats the choices of kernels of its capture.
  bool graph = false;

  /// The options that must be the same on all ranks.
  SettingList settings() const {
    return {{"seed", text(seed)},
            {"reduction", reduction == Reduction::once ? "once" : "every micro-batch"},
            {"bucket_bytes", text(bucket_bytes)},
            {"context_attention", std::string(name_of(context_attention))}};
  }
};

struct TrainOptions {
  std::int64_t micro_batches = 1;  ///< the batch's rows are cut into so many passes; their gradients add up
  /// Factor on all gradients of activations and weights, for types that hold no small ones: see train/loss_scale.hpp.
  /// The loss, the norm that clip measures and FusedAdam's step are without it.
  float loss_scale = 1;

  /// Throws ConfigError for values that cannot work.
  void check() const {
    if (micro_batches < 1) throw ConfigError(text("micro_batches must be at least 1, got ", micro_batches));
    if (!(loss_scale > 0)) throw ConfigError(text("loss_scale must be positive, got ", loss_scale));
  }
};

}  // namespace zeropp
