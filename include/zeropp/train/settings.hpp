// SPDX-License-Identifier: Apache-2.0
// How to train, whatever the model: what a file or flags set, and what they amount to.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include <zeropp/train/fused_adam.hpp>
#include <zeropp/train/schedule.hpp>

namespace zeropp {

/// Settings of a training run that do not depend on the model.
struct TrainSettings {
  int zero = 2;                            ///< stage
  std::optional<int> prefetch = {};        ///< units gathered ahead at stage 3; not said: see ShardedOptions
  std::int64_t bucket_elements = 4 << 20;  ///< gradients reduced at a time
  std::int64_t rows = 32;                  ///< sequences of a step, over all ranks and micro-batches
  std::int64_t micro_batch = 0;            ///< sequences of a micro-batch on a rank; 0: all of the rank at once
  std::string precision = "fp32", schedule = "cosine";
  std::int64_t steps = 380, warmup_steps = 30;
  float lr = 2e-3f, min_lr = 1e-4f, weight_decay = 0.1f, epsilon = 1e-8f, grad_clip = 1.0f;
  std::array<float, 2> betas{0.9f, 0.95f};
  std::uint64_t seed = 1337;
  bool recompute = false;
  int ranks = 0;  ///< what the batch sizes of a file imply; 0: nothing
  Reduction reduction = Reduction::every_micro_batch;

  ShardedOptions sharded() const {
    return {.seed = seed,
            .reduction = reduction,
            .prefetch = prefetch,
            .bucket_bytes = static_cast<std::size_t>(bucket_elements) * sizeof(float)};
  }
  AdamOptions adam() const {
    return {.beta1 = betas[0], .beta2 = betas[1], .epsilon = epsilon, .weight_decay = weight_decay};
  }
  /// Learning rate of a step, from 0. Throws ConfigError for rates and steps that do not fit.
  float rate(std::int64_t step) const {
    if (schedule == "constant") return Constant{.peak = lr, .warmup = warmup_steps, .steps = steps}(step);
    if (schedule == "linear")
      return Linearly{.peak = lr, .floor = min_lr, .warmup = warmup_steps, .steps = steps}(step);
    if (schedule == "cosine") return Cosine{.peak = lr, .floor = min_lr, .warmup = warmup_steps, .steps = steps}(step);
    throw ConfigError(text("the schedules are cosine, linear and constant, got \"", schedule, "\""));
  }
  /// Sequences of a step that a rank takes.
  std::int64_t rows_of(int rank, int world_size) const {
    return part_begin(rows, rank + 1, world_size) - part_begin(rows, rank, world_size);
  }
  /// Micro-batches of a step on `world_size` ranks. Throws ConfigError with the nearest number of rows that fits.
  std::int64_t micro_batches(int world_size) const {
    if (micro_batch == 0 && rows > 0) return 1;
    const auto pass = checked_product(std::max<std::int64_t>(micro_batch, 1), world_size);
    if (micro_batch < 0 || rows < 1 || rows % pass)
      throw ConfigError(text("a step of ", rows, " sequences is not micro-batch ", micro_batch, " x ", world_size,
                             " ranks x a number of micro-batches; the nearest that is: ",
                             std::max<std::int64_t>(1, (rows + pass / 2) / pass) * pass, " sequences"));
    return rows / pass;
  }
};

}  // namespace zeropp
