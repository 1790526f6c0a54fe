// SPDX-License-Identifier: Apache-2.0
// How to train, under DeepSpeed's keys: a JSON file written for DeepSpeed steers a run as far as its keys are known
// here; others are refused, never ignored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include <zeropp/base/shape.hpp>
#include <zeropp/app/config/config.hpp>
#include <zeropp/app/config/settings.hpp>

namespace zeropp {

namespace detail {

/// bf16 {enabled} or fp16 {enabled, loss_scale (0: it adapts), initial_scale_power, loss_scale_window, hysteresis,
/// min_loss_scale}.
inline void read_precision(ConfigSection& root, TrainSettings& s) {
  bool wide = false, narrow = false;
  auto brain = root.section("bf16"), half = root.section("fp16");
  bool said = brain.read("enabled", wide);
  said = half.read("enabled", narrow) || said;
  brain.finish();
  auto& scale = s.loss_scale;
  half.read("loss_scale", scale.fixed, 0, 1e38);
  if (int power = 0; half.read("initial_scale_power", power, 0, 126)) scale.initial = std::ldexp(1.0f, power);
  half.read("loss_scale_window", scale.window, 1, 1e15);
  half.read("hysteresis", scale.hysteresis, 1, 1e6);
  half.read("min_loss_scale", scale.minimum, 0, 1e38);
  half.finish();
  if (wide && narrow) root.refuse("fp16", "and \"bf16\" are both enabled; a run has one precision");
  (void)root.made("fp16", "does not fit", [&] { return LossScaler{scale}; });
  if (said) s.precision = narrow ? "fp16" : wide ? "bf16" : "fp32";
}

}  // namespace detail

/// Reads train_batch_size, train_micro_batch_size_per_gpu, gradient_accumulation_steps (which must fit),
/// zero_optimization {stage, reduce_bucket_size, prefetch_units}, tensor_parallel {autotp_size, sequence_parallel},
/// pipeline {stages, schedule, chunks}, sequence_parallel_size and context_attention (our context ranks), optimizer
/// {type, params {lr, betas, eps, weight_decay}}, scheduler {type, params {total_num_steps, warmup_num_steps,
/// warmup_max_lr, cos_min_ratio}}, bf16 and fp16 (detail::read_precision), gradient_clipping, seed,
/// activation_checkpointing, steps. The caller reads sections of its own and then calls root.finish(). Throws
/// ConfigError.
inline void read_deepspeed(ConfigSection& root, TrainSettings& s) {
  std::int64_t accumulation = 0;
  const bool batch = root.read("train_batch_size", s.rows, 1, 1e9),
             micro = root.read("train_micro_batch_size_per_gpu", s.micro_batch, 1, 1e9);
  if (root.read("gradient_accumulation_steps", accumulation, 1, 1e9)) {
    if (!batch || !micro)
      root.refuse("gradient_accumulation_steps",
                  "is derived; give train_batch_size and train_micro_batch_size_per_gpu with it");
    const auto pass = checked_product(s.micro_batch, accumulation);
    if (s.rows % pass)
      root.refuse("train_batch_size", text("of ", s.rows, " is not micro-batch ", s.micro_batch, " x accumulation ",
                                           accumulation, " x a number of ranks; the nearest that is: ",
                                           std::max<std::int64_t>(1, (s.rows + pass / 2) / pass) * pass));
    s.implied_data_ranks = s.rows / pass;
  }
  auto zero = root.section("zero_optimization");
  zero.read("stage", s.zero, 0, 3);
  zero.read("reduce_bucket_size", s.bucket_elements, 0, 1e15);
  if (int units = 0; zero.read("prefetch_units", units, 0, 1e6)) s.prefetch = units;
  zero.finish();

  auto tensor = root.section("tensor_parallel");
  tensor.read("autotp_size", s.tensor, 1, 1e6);
  tensor.read("sequence_parallel", s.sequence_parallel);
  tensor.finish();
  auto pipeline = root.section("pipeline");
  pipeline.read("stages", s.pipeline, 1, 1e6);
  if (pipeline.read("schedule", s.pipeline_schedule))
    if (std::find(pipeline_kinds.begin(), pipeline_kinds.end(), s.pipeline_schedule) == pipeline_kinds.end())
      pipeline.refuse("schedule",
                      text("must be gpipe, 1f1b, interleaved, zb-h1 or zb-v, got \"", s.pipeline_schedule, "\""));
  pipeline.read("chunks", s.chunks, 1, 1e6);
  pipeline.finish();
  root.read("sequence_parallel_size", s.context, 1, 1e6);
  if (std::string name; root.read("context_attention", name))
    s.context_attention =
        root.made("context_attention", "is unknown", [&] { return name_of(context_attention(name)); });

  auto optimizer = root.section("optimizer");
  if (std::string type; optimizer.read("type", type) && type != "AdamW")
    optimizer.refuse("type", text("must be \"AdamW\", got \"", type, "\""));
  auto adam = optimizer.section("params");
  adam.read("lr", s.lr, 0, 1e3);
  adam.read("betas", s.betas, 0, 0.99999);
  adam.read("eps", s.epsilon, 0, 1);
  adam.read("weight_decay", s.weight_decay, 0, 1e3);
  adam.finish();
  optimizer.finish();

  auto scheduler = root.section("scheduler");
  if (std::string type; scheduler.read("type", type)) {
    s.lr_schedule = type == "WarmupCosineLR"  ? "cosine"
                    : type == "WarmupDecayLR" ? "linear"
                    : type == "WarmupLR"      ? "constant"
                                              : "";
    if (s.lr_schedule.empty())
      scheduler.refuse("type", text("must be WarmupCosineLR, WarmupDecayLR or WarmupLR, got \"", type, "\""));
  }
  auto rates = scheduler.section("params");
  rates.read("total_num_steps", s.steps, 1, 1e15);
  rates.read("warmup_num_steps", s.warmup_steps, 0, 1e15);
  rates.read("warmup_max_lr", s.lr, 0, 1e3);
  if (float ratio = 0; rates.read("cos_min_ratio", ratio, 0, 1)) s.min_lr = ratio * s.lr;
  rates.finish();
  scheduler.finish();

  detail::read_precision(root, s);
  root.read("gradient_clipping", s.grad_clip, 0, 1e6);
  root.read("seed", s.seed, 0);
  root.read("activation_checkpointing", s.recompute);
  root.read("steps", s.steps, 1, 1e15);
}

}  // namespace zeropp
