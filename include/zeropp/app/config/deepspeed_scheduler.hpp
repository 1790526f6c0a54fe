// SPDX-License-Identifier: Apache-2.0
// The "scheduler" section of a DeepSpeed file.
#pragma once

#include <string>

#include <zeropp/app/config/deepspeed_settle.hpp>
#include <zeropp/app/config/settings.hpp>

namespace zeropp::deepspeed {

/// Reads a key, and notes for the setting of this name where its value came from.
template <class T>
bool take(ConfigSection& section, const std::string& key, T& into, TrainSettings& s, const std::string& setting,
          double low = -1e300, double high = 1e300) {
  if (!section.read(key, into, low, high)) return false;
  s.origins.from_file(setting, section.place(key));
  return true;
}

/// WarmupLR, WarmupDecayLR, WarmupCosineLR: "warmup_type" is "log" unless it says "linear".
inline WarmupSchedule read_warmup(ConfigSection& params, TrainSettings& s, WarmupSchedule::Then then) {
  WarmupSchedule schedule{.then = then};
  if (!take(params, "warmup_num_steps", s.warmup_steps, s, "--warmup-steps", 1, 1e15))
    s.warmup_steps = 1000, s.origins.by_default("--warmup-steps", "DeepSpeed's default");
  if (std::string shape; params.read("warmup_type", shape)) {
    if (shape != "log" && shape != "linear")
      params.refuse("warmup_type", text("must be \"log\" or \"linear\", got \"", shape, "\""));
    schedule.logarithmic = shape == "log";
  }
  if (then == WarmupSchedule::Then::cosine) {
    params.read("warmup_min_ratio", schedule.minimum, 0, 1);
    params.read("cos_min_ratio", schedule.cosine_minimum, 0, 1);
    if (params.has("warmup_max_lr") || params.has("warmup_min_lr"))
      params.refuse(params.has("warmup_max_lr") ? "warmup_max_lr" : "warmup_min_lr",
                    "is none of WarmupCosineLR's: its peak is optimizer.params.lr, and warmup_min_ratio its beginning");
  } else {
    params.read("warmup_min_lr", schedule.minimum, 0, 1e3);
    if (!take(params, "warmup_max_lr", s.lr, s, "--lr", 0, 1e3) && then == WarmupSchedule::Then::line &&
        !params.unsaid("warmup_max_lr"))
      s.lr = 1e-3, s.origins.by_default("--lr", "DeepSpeed's default of WarmupDecayLR");
  }
  if (then != WarmupSchedule::Then::stay && take(params, "total_num_steps", schedule.total, s, "--steps", 1, 1e15))
    s.steps = schedule.total;
  return schedule;
}

inline OneCycle read_one_cycle(ConfigSection& params) {
  OneCycle cycle;
  for (auto key : {"cycle_min_lr", "cycle_max_lr"})
    if (!params.has(key)) params.refuse(key, "must be given for OneCycle");
  params.read("cycle_min_lr", cycle.minimum, 0, 1e3), params.read("cycle_max_lr", cycle.maximum, 0, 1e3);
  params.read("cycle_first_step_size", cycle.first, 1, 1e12), cycle.second = cycle.first;
  params.read("cycle_second_step_size", cycle.second, 0, 1e12);
  params.read("cycle_first_stair_count", cycle.first_stairs, 0, 1e6), cycle.second_stairs = cycle.first_stairs;
  params.read("cycle_second_stair_count", cycle.second_stairs, 0, 1e6);
  params.read("decay_lr_rate", cycle.decay_rate, 0, 1e6), params.read("decay_step_size", cycle.decay_steps, 0, 1e12);
  bool momentum = true;
  params.read("cycle_momentum", momentum);
  if (momentum)
    params.refuse("cycle_momentum", "must be false, DeepSpeed's default is true: Adam's beta1 does not change here");
  for (auto key : {"cycle_min_mom", "cycle_max_mom", "decay_mom_rate"}) (void)params.node(key);  // momentum stays
  return cycle;
}

inline RangeTest read_range_test(ConfigSection& params) {
  RangeTest test;
  params.read("lr_range_test_min_lr", test.minimum, 0, 1e3);
  params.read("lr_range_test_step_size", test.interval, 1, 1e12);
  params.read("lr_range_test_step_rate", test.growth, 0, 1e12);
  params.read("lr_range_test_staircase", test.stairs);
  return test;
}

/// Without a type the rate is constant, as in DeepSpeed. Reads s.lr before: a scheduler may set it again.
inline void read_scheduler(ConfigSection& root, TrainSettings& s) {
  auto scheduler = root.section("scheduler");
  s.lr_schedule = "constant", s.warmup_steps = 0, s.schedule.reset();
  for (auto setting : {"--lr-schedule", "--warmup-steps"}) s.origins.by_default(setting, "DeepSpeed's default");
  auto params = scheduler.section("params");
  if (std::string type; take(scheduler, "type", type, s, "--lr-schedule")) {
    const auto name = lower(type);
    using Then = WarmupSchedule::Then;
    if (name == "warmuplr")
      s.schedule = read_warmup(params, s, Then::stay);
    else if (name == "warmupdecaylr")
      s.schedule = read_warmup(params, s, Then::line);
    else if (name == "warmupcosinelr")
      s.schedule = read_warmup(params, s, Then::cosine);
    else if (name == "onecycle")
      s.schedule = read_one_cycle(params);
    else if (name == "lrrangetest")
      s.schedule = read_range_test(params);
    else
      scheduler.refuse(
          "type", text("must be WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle or LRRangeTest, got \"", type, "\""));
    s.lr_schedule = type;
  } else if (params.present()) {
    scheduler.refuse("params", "has no effect without a \"type\" beside it: give one, or take the section out");
  }
  params.finish();
  scheduler.finish();
}

}  // namespace zeropp::deepspeed
