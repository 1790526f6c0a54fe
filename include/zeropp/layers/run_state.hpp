// SPDX-License-Identifier: Apache-2.0
// The state of a pass beside device and precision: mode, seed and step, the labels, the positions on this rank.
#pragma once

#include <cstdint>
#include <span>

#include <zeropp/device/tensor.hpp>
#include <zeropp/layers/context_shard.hpp>

namespace zeropp {

enum class Mode { training, evaluation };

/// Asks a head for the logits of some rows (of B·T) instead of a loss: sampling. `out` is [rows, vocabulary].
struct LogitsRequest {
  std::span<const std::int64_t> rows;
  std::span<float> out;
};

/// Copied into every context.
struct RunState {
  Mode mode = Mode::training;
  std::uint64_t seed = 0;
  std::int64_t step = 0;
  std::int64_t first_sample = 0;  ///< index of this batch's first row in the whole batch of the step, over all ranks
  /// Factor on the gradient of the *sum* of the losses: 1 / labels of the step for a mean, times
  /// TrainOptions::loss_scale.
  double loss_weight = 1;
  Tensor<std::int32_t, 2> labels = {};  ///< [B, T]; negative: no loss at that place
  LogitsRequest* logits = nullptr;
  bool* draws = nullptr;  ///< set to true by who draws random numbers in a pass
  ContextShard context_shard =
      {};  ///< the positions of every sequence on this rank; T above and in layers counts these
};

}  // namespace zeropp
