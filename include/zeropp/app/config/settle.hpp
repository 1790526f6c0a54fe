// SPDX-License-Identifier: Apache-2.0
// The settings that follow once flags and a file have been read: defaults relative to what was said, batch sizes from
// any two of three, and refusals that name the flag or the key.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include <zeropp/app/config/settings.hpp>

namespace zeropp {

namespace detail {

/// Flags that have nothing to steer: a schedule that sets its own rates, or one without a floor.
inline void expect_flags_of_schedule(const TrainSettings& s) {
  const bool warms_up = !s.schedule || std::holds_alternative<WarmupSchedule>(*s.schedule);
  for (auto flag : {"--lr", "--warmup-steps"})
    if (!warms_up && s.origins.flag(flag))
      throw ConfigError(text(flag, ": ", s.origins.name("--lr-schedule"), " is ", s.lr_schedule,
                             ", which sets its own rates; leave it out, or give --lr-schedule in its place"));
  if (s.origins.flag("--min-lr") && (s.schedule || s.lr_schedule == "constant"))
    throw ConfigError(text("--min-lr is where the schedules cosine and linear end; ", s.origins.name("--lr-schedule"),
                           " is ", s.lr_schedule));
}

}  // namespace detail

/// Call when all flags and the file were read. A floor that nobody gave is a twentieth of --lr, and a warm-up that
/// nobody gave a quarter of the steps. Throws ConfigError for rates and steps that do not fit.
inline void settle_rates(TrainSettings& s) {
  auto& from = s.origins;
  if (from.flag("--lr-schedule")) s.schedule.reset();
  detail::expect_flags_of_schedule(s);
  if (!(s.lr >= 0 && std::isfinite(s.lr)))
    throw ConfigError(text(from.name("--lr"), " must be at least 0, got ", s.lr));
  if (s.warmup_steps < 0)
    throw ConfigError(text(from.name("--warmup-steps"), " must be at least 0, got ", s.warmup_steps));
  if (s.schedule) return;
  if (!from.said("--min-lr")) s.min_lr = s.lr / 20;
  if (!(s.min_lr >= 0 && s.min_lr <= s.lr))
    throw ConfigError(
        text(from.name("--min-lr"), " must be from 0 to ", from.name("--lr"), " = ", s.lr, ", got ", s.min_lr));
  constexpr auto quarter = "a quarter of --steps";
  if (!from.said("--warmup-steps") &&
      (!from.noted("--warmup-steps") || from.of("--warmup-steps") == quarter || from.flag("--lr-schedule")))
    s.warmup_steps = std::max<std::int64_t>(0, s.steps) / 4, from.by_default("--warmup-steps", quarter);
  if (s.warmup_steps > s.steps)
    throw ConfigError(text(from.name("--warmup-steps"), ": a warm-up of ", s.warmup_steps,
                           " steps does not fit a training of ", s.steps, " steps (", from.name("--steps"),
                           "); give at most ", s.steps));
}

/// Settles rows, micro_batch and passes of a file for so many data ranks. Where flags say some of the three, they win:
/// of the file's, the batch is kept first, then the micro-batch. Flags alone are left to micro_batches(). Throws
/// ConfigError where the three do not fit.
inline void settle_batch(TrainSettings& s, std::int64_t data_ranks) {
  if (!s.batch.said() || s.micro_batch < 0 || s.passes < 0) return;  // micro_batches() refuses flags below 0
  auto& from = s.origins;
  BatchSizes sizes = s.batch;
  const bool rows = from.flag("sequences a step"), micro = from.flag("--batch") && s.micro_batch > 0,
             passes = from.flag("--micro-batches") && s.passes > 0;
  if (rows) sizes.batch = s.rows;
  if (from.flag("--batch")) sizes.micro = s.micro_batch;
  if (from.flag("--micro-batches")) sizes.accumulation = s.passes;
  if (rows || micro || passes) {
    if (sizes.said() == 3 && !passes) sizes.accumulation = 0;
    if (sizes.said() == 3 && !micro) sizes.micro = 0;
    if (sizes.said() == 3 && !rows) sizes.batch = 0;
  }
  if (!sizes.said()) return;
  if (!sizes.batch && !sizes.micro) {  // about as large a batch as without a file
    const auto pass = checked_product(sizes.accumulation, data_ranks);
    sizes.batch = pass * std::max<std::int64_t>(1, s.rows / pass);
  }
  BatchSizes all;
  try {
    all = sizes.on(data_ranks);
  } catch (const ConfigError& error) {
    std::string where;
    for (auto setting : {"sequences a step", "--batch", "--micro-batches"})
      if (from.file(setting)) where += text(where.empty() ? "" : "; ", from.of(setting));
    throw ConfigError(where.empty() ? std::string(error.what()) : text(error.what(), " (", where, ")"));
  }
  s.rows = all.batch, s.micro_batch = all.micro, s.passes = all.accumulation;
  const auto derived =
      text("from what is said of the batch, and ", data_ranks, " data rank", data_ranks == 1 ? "" : "s");
  if (!from.said("sequences a step") || !sizes.batch) from.by_default("sequences a step", derived);
  if (!sizes.micro) from.by_default("--batch", derived);
  if (!sizes.accumulation) from.by_default("--micro-batches", derived);
}

}  // namespace zeropp
