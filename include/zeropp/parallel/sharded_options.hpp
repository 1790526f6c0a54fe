// SPDX-License-Identifier: Apache-2.0
// Settings of a sharded model and of its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include <zeropp/layers/context_part.hpp>
#include <zeropp/parallel/bucketed_reducer.hpp>
#include <zeropp/parallel/stage.hpp>

namespace zeropp {

struct ShardedOptions {
  std::uint64_t seed = 1337;
  Reduction reduction = Reduction::every_micro_batch;
  /// Units gathered ahead of the running one (stage 3). Not said: 2 on a GPU, where that goes on beside computing, and
  /// 0 on the host, where it would only take memory.
  std::optional<int> prefetch = {};
  std::size_t bucket_bytes = BucketOptions{}.bucket_bytes;
  ContextAttention context_attention = ContextAttention::ulysses;  ///< on a mesh with several context ranks
};

struct TrainOptions {
  std::int64_t micro_batches = 1;  ///< the batch's rows are cut into so many passes; their gradients add up
  /// Factor on all gradients of activations and weights, for types that hold no small ones: see train/loss_scale.hpp.
  /// The loss, the norm that clip measures and FusedAdam's step are without it.
  float loss_scale = 1;
};

}  // namespace zeropp
