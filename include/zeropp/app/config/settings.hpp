// SPDX-License-Identifier: Apache-2.0
// How to train, whatever the model: what a file or flags set, and what they amount to.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <zeropp/comm/settings.hpp>
#include <zeropp/parallel/parallelize.hpp>
#include <zeropp/train/loss_scale.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>
#include <zeropp/train/schedule.hpp>
#include <zeropp/app/config/batch_sizes.hpp>
#include <zeropp/app/config/deepspeed_schedule.hpp>
#include <zeropp/app/config/origins.hpp>

namespace zeropp {

/// Settings of a training run that do not depend on the model.
struct TrainSettings {
  int zero = 2;                      ///< stage
  std::optional<int> prefetch = {};  ///< units gathered ahead at stage 3; not said: see ShardedOptions
  std::optional<std::int64_t> prefetch_elements = {};  ///< the same as a file says it, in weights
  std::int64_t bucket_elements = 4 << 20;              ///< gradients reduced at a time
  std::int64_t rows = 32;                              ///< sequences of a step, over all ranks and micro-batches
  std::int64_t micro_batch = 0;                        ///< sequences of a micro-batch on a rank; 0: as passes says
  std::int64_t passes = 0;                             ///< micro-batches of a step; 0: as micro_batch says, or one
  int tensor = 1, pipeline = 1, context = 1;           ///< ranks of these axes; the data axis has the others
  std::string context_attention = "ulysses";           ///< or "ring": how context ranks attend
  bool sequence_parallel = false;
  std::string pipeline_schedule = "1f1b";
  int chunks = 0;  ///< of the model on a pipeline rank; 0: the fewest that the schedule takes
  std::string precision = "fp32", lr_schedule = "cosine";
  std::optional<DeepSpeedSchedule> schedule = {};  ///< of a file; lr_schedule is its name then
  std::int64_t steps = 380, warmup_steps = 30;
  double lr = 2e-3, min_lr = 1e-4;
  float weight_decay = 0.1f, epsilon = 1e-8f, grad_clip = 1.0f;
  std::array<float, 2> betas{0.9f, 0.95f};
  LossScaleOptions loss_scale = {};  ///< of a run in fp16
  std::uint64_t seed = 1337;
  bool recompute = false;
  std::int64_t recompute_blocks = 0;     ///< of a file: the first so many; 0: all, if recompute
  int ranks = 0;                         ///< threads of this process; 0: what the environment says
  BatchSizes batch = {};                 ///< what a file says of rows, micro_batch and passes
  std::int64_t steps_per_print = 0;      ///< steps from one line of the console to the next; 0: about fifty lines
  std::string tensorboard, csv_monitor;  ///< folders of events; empty: none
  std::vector<std::string> notes = {};   ///< keys of a file that have no effect here, and why
  Origins origins = {};                  ///< by the names of compared()
  Reduction reduction = Reduction::every_micro_batch;
  bool graph = false;  ///< see ShardedOptions

  ShardedOptions sharded() const {
    return {.seed = seed,
            .reduction = reduction,
            .prefetch = prefetch,
            .bucket_bytes = static_cast<std::size_t>(bucket_elements) * sizeof(float),
            .context_attention = zeropp::context_attention(context_attention),
            .graph = graph};
  }
  AdamOptions adam() const {
    return {.beta1 = betas[0], .beta2 = betas[1], .epsilon = epsilon, .weight_decay = weight_decay};
  }
  /// For the run's LossScaler: 1 throughout unless the precision is fp16.
  LossScaleOptions loss_scaling() const { return precision == "fp16" ? loss_scale : LossScaleOptions{.fixed = 1}; }
  /// The settings that must be the same on all ranks, under the names of flags: see expect_same_settings.
  SettingList compared() const {
    return {{"--zero", text(zero)},
            {"--batch", text(micro_batch)},
            {"--micro-batches", text(passes)},
            {"sequences a step", text(rows)},
            {"--tp", text(tensor)},
            {"--pp", text(pipeline)},
            {"--cp", text(context)},
            {"--schedule", pipeline_schedule},
            {"--chunks", text(chunks)},
            {"--precision", precision},
            {"--lr-schedule", schedule ? std::visit([](auto& s) { return s.describe(); }, *schedule) : lr_schedule},
            {"--steps", text(steps)},
            {"--warmup-steps", text(warmup_steps)},
            {"--lr", text(lr)},
            {"--min-lr", text(min_lr)},
            {"--weight-decay", text(weight_decay)},
            {"betas", text(betas[0], " ", betas[1])},
            {"epsilon", text(epsilon)},
            {"--grad-clip", text(grad_clip)},
            {"fp16", text(loss_scale.fixed, " ", loss_scale.initial, " ", loss_scale.window, " ", loss_scale.hysteresis,
                          loss_scale.consecutive_hysteresis ? " each, " : " ", loss_scale.minimum)},
            {"--seed", text(seed)}};
  }
  /// Learning rate of a step, from 0. Throws ConfigError for rates and steps that do not fit. A schedule of DeepSpeed
  /// counts the steps that were done, others all steps.
  float rate(std::int64_t step) const {
    if (schedule) {
      const WarmupTarget target{lr, warmup_steps, steps};
      return static_cast<float>(std::visit([&](auto& s) { return s(step, target); }, *schedule));
    }
    const auto peak = static_cast<float>(lr), floor = static_cast<float>(min_lr);
    if (lr_schedule == "constant") return Constant{.peak = peak, .warmup = warmup_steps, .steps = steps}(step);
    if (lr_schedule == "linear")
      return LinearDecay{.peak = peak, .floor = floor, .warmup = warmup_steps, .steps = steps}(step);
    if (lr_schedule == "cosine")
      return Cosine{.peak = peak, .floor = floor, .warmup = warmup_steps, .steps = steps}(step);
    throw ConfigError(text("the schedules are cosine, linear and constant, got \"", lr_schedule, "\""));
  }
  /// Throws ConfigError, with the products that do, unless tensor x pipeline x context divides the ranks.
  MeshOptions mesh(int world_size) const {
    const auto product = checked_product(checked_product(tensor, pipeline), context);
    if (tensor < 1 || pipeline < 1 || context < 1 || world_size % product) {
      std::string valid;
      for (int p = 1; p <= world_size; ++p)
        if (world_size % p == 0) valid += text(valid.empty() ? "" : ", ", p);
      throw ConfigError(text(tensor, " tensor x ", pipeline, " pipeline x ", context, " context ranks do not divide ",
                             world_size, world_size == 1 ? " rank" : " ranks", "; their product can be ", valid));
    }
    return {.tensor = tensor, .pipeline = pipeline, .context = context};
  }
  Stage stage() const { return static_cast<Stage>(zero); }
  /// Throws ConfigError for a schedule that there is not.
  ParallelOptions parallel() const {
    const auto kind = pipeline_kind(pipeline_schedule);
    const int fewest = kind == PipelineKind::interleaved || kind == PipelineKind::zb_v ? 2 : 1;
    return {.schedule = kind, .chunks = chunks ? chunks : fewest, .sequence_parallel = sequence_parallel};
  }
  /// Sequences of a step that a data rank takes.
  std::int64_t rows_of(const Comm& data) const {
    return part_begin(rows, data.rank() + 1, data.size()) - part_begin(rows, data.rank(), data.size());
  }
  /// Micro-batches of a step on so many data ranks. Throws ConfigError with the nearest number of rows that fits.
  std::int64_t micro_batches(int data_ranks) const {
    if (micro_batch == 0 && rows > 0) {
      if (passes < 0 || rows < checked_product(passes, data_ranks))
        throw ConfigError(text("a step of ", rows, " sequences on ", data_ranks, " data ranks can not be cut into ",
                               passes, " micro-batches; at most ", std::max<std::int64_t>(1, rows / data_ranks)));
      return std::max<std::int64_t>(1, passes);
    }
    const auto pass = checked_product(std::max<std::int64_t>(micro_batch, 1), data_ranks);
    if (micro_batch < 0 || rows < 1 || rows % pass)
      throw ConfigError(text("a step of ", rows, " sequences is not micro-batch ", micro_batch, " x ", data_ranks,
                             " ranks x a number of micro-batches; the nearest that is: ",
                             std::max<std::int64_t>(1, (rows + pass / 2) / pass) * pass, " sequences"));
    if (passes && passes != rows / pass)
      throw ConfigError(text("a step of ", rows, " sequences in micro-batches of ", micro_batch, " on ", data_ranks,
                             " data ranks makes ", rows / pass, " micro-batches, not ", passes));
    return rows / pass;
  }
};

}  // namespace zeropp
