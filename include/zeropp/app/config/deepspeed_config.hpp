// SPDX-License-Identifier: Apache-2.0
// How to train, under DeepSpeed's keys and with their meaning: docs/deepspeed.md lists them. A key that is not said has
// DeepSpeed's default. Keys that steer nothing here are those of deepspeed_keys.hpp; others are refused, never ignored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <zeropp/app/config/deepspeed_scheduler.hpp>
#include <zeropp/app/config/deepspeed_settle.hpp>
#include <zeropp/app/config/settings.hpp>

namespace zeropp {

namespace deepspeed {

/// What DeepSpeed does where a file says nothing. Sizes of a step, the seed and the mesh are the program's.
inline void set_defaults(TrainSettings& s) {
  s.zero = 0, s.lr = 1e-3, s.betas = {0.9f, 0.999f}, s.epsilon = 1e-8f, s.weight_decay = 0, s.grad_clip = 1;
  for (auto setting : {"--zero", "--lr", "betas", "epsilon", "--weight-decay", "--grad-clip"})
    s.origins.by_default(setting, "DeepSpeed's default");
}

/// bf16 (or bfloat16) {enabled} or fp16 {enabled, loss_scale (0: it adapts), initial_scale_power, loss_scale_window,
/// hysteresis, consecutive_hysteresis, min_loss_scale}. "enabled": "auto" leaves the precision to the program.
inline void read_precision(ConfigSection& root, TrainSettings& s) {
  bool wide = false, narrow = false;
  (void)root.node("bf16"), (void)root.node("bfloat16");
  const std::string brain_name = root.has("bf16") ? "bf16" : "bfloat16";  // the older name
  auto brain = root.section(brain_name), half = root.section("fp16");
  const bool open = brain.unsaid("enabled") || half.unsaid("enabled");
  brain.read("enabled", wide), half.read("enabled", narrow);
  if (wide || brain.unsaid("enabled")) settle_keys(brain, "bf16.", s.notes);
  auto& scale = s.loss_scale;
  if (narrow || half.unsaid("enabled")) {
    take(half, "loss_scale", scale.fixed, s, "fp16", 0, 1e38);
    if (int power = 0; half.read("initial_scale_power", power, 0, 126)) scale.initial = std::ldexp(1.0f, power);
    half.read("loss_scale_window", scale.window, 1, 1e15);
    half.read("hysteresis", scale.hysteresis, 1, 1e6);
    half.read("consecutive_hysteresis", scale.consecutive_hysteresis);
    half.read("min_loss_scale", scale.minimum, 0, 1e38);
    settle_keys(half, "fp16.", s.notes);
  }
  know_keys(brain, "bf16."), brain.finish();
  for (auto key : {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis",
                   "min_loss_scale"})
    (void)half.node(key);
  know_keys(half, "fp16."), half.finish();
  if (wide && narrow) root.refuse("fp16", "and \"bf16\" are both enabled; a run has one precision");
  if (narrow) (void)root.made("fp16", "does not fit", [&] { return LossScaler{scale}; });
  if (wide || narrow)
    s.precision = narrow ? "fp16" : "bf16",
    s.origins.from_file("--precision", narrow ? half.place("enabled") : brain.place("enabled"));
  else if (!open)
    s.precision = "fp32", s.origins.by_default("--precision", "DeepSpeed's default");
}

/// zero_optimization {stage, reduce_bucket_size, prefetch_bucket_size, offload_optimizer, offload_param} and our
/// prefetch_units; true in its place is stage 1.
inline void read_zero(ConfigSection& root, TrainSettings& s) {
  if (const auto* node = root.node("zero_optimization"); node && node->value.is_boolean()) {
    s.zero = node->value == true ? 1 : 0;
    s.origins.from_file("--zero", root.place("zero_optimization"));
    return;
  }
  auto zero = root.section("zero_optimization");
  take(zero, "stage", s.zero, s, "--zero", 0, 3);
  take(zero, "reduce_bucket_size", s.bucket_elements, s, "--bucket-size", 0, 1e15);
  if (int units = 0; take(zero, "prefetch_units", units, s, "--prefetch", 0, 1e6)) s.prefetch = units;
  for (auto key : {"prefetch_bucket_size", "stage3_prefetch_bucket_size"})
    if (std::int64_t elements = 0; take(zero, key, elements, s, "--prefetch", 0, 1e18)) s.prefetch_elements = elements;
  for (auto key : {"offload_optimizer", "offload_param"}) {
    const auto* node = zero.node(key);
    if (!node || node->unsaid) continue;
    auto section = zero.section(key);
    std::string device = "none";
    section.read("device", device);
    if (device != "none") zero.refuse(key, text("to \"", device, "\" ", offload));
  }
  settle_keys(zero, "zero_optimization.", s.notes);
  zero.finish();
}

/// optimizer {type, params {lr, betas, eps, weight_decay, adam_w_mode}}: AdamW by any of its names.
inline void read_optimizer(ConfigSection& root, TrainSettings& s) {
  auto optimizer = root.section("optimizer");
  std::string type = "AdamW";
  optimizer.read("type", type);
  if (const auto name = lower(type); name != "adamw" && name != "adam" && name != "fusedadam")
    optimizer.refuse("type", text("must be AdamW, Adam or FusedAdam, got \"", type, "\""));
  auto adam = optimizer.section("params");
  take(adam, "lr", s.lr, s, "--lr", 0, 1e3);
  take(adam, "betas", s.betas, s, "betas", 0, 0.9999999);
  take(adam, "eps", s.epsilon, s, "epsilon", std::numeric_limits<float>::min(), 1);
  take(adam, "weight_decay", s.weight_decay, s, "--weight-decay", 0, 1e3);
  bool decoupled = true;
  adam.read("adam_w_mode", decoupled);
  if (!decoupled && lower(type) != "adamw")
    adam.refuse("adam_w_mode", "must be true: weight decay is AdamW's here, not added to gradients");
  settle_keys(adam, "optimizer.params.", s.notes);
  adam.finish();
  for (auto key : {"lr", "betas", "eps", "weight_decay", "adam_w_mode", "bias_correction"})
    if (optimizer.node(key))
      s.notes.push_back(text("optimizer.", key, " (DeepSpeed reads it within optimizer.params only)"));
  settle_keys(optimizer, "optimizer.", s.notes, {"params"});
  optimizer.finish();
}

/// tensor_parallel {autotp_size (0: off), sequence_parallel}, pipeline {stages, schedule, chunks},
/// sequence_parallel_size and context_attention (our context ranks).
inline void read_mesh(ConfigSection& root, TrainSettings& s) {
  auto tensor = root.section("tensor_parallel");
  take(tensor, "autotp_size", s.tensor, s, "--tp", 0, 1e6), s.tensor = std::max(1, s.tensor);
  take(tensor, "sequence_parallel", s.sequence_parallel, s, "--sequence-parallel");
  settle_keys(tensor, "tensor_parallel.", s.notes);
  tensor.finish();
  auto pipeline = root.section("pipeline");
  take(pipeline, "stages", s.pipeline, s, "--pp", 1, 1e6);
  if (take(pipeline, "schedule", s.pipeline_schedule, s, "--schedule"))
    if (std::find(pipeline_kinds.begin(), pipeline_kinds.end(), s.pipeline_schedule) == pipeline_kinds.end())
      pipeline.refuse("schedule",
                      text("must be gpipe, 1f1b, interleaved, zb-h1 or zb-v, got \"", s.pipeline_schedule, "\""));
  take(pipeline, "chunks", s.chunks, s, "--chunks", 1, 1e6);
  settle_keys(pipeline, "pipeline.", s.notes);
  pipeline.finish();
  take(root, "sequence_parallel_size", s.context, s, "--cp", 1, 1e6);
  if (std::string name; take(root, "context_attention", name, s, "--context-attention"))
    s.context_attention =
        root.made("context_attention", "is unknown", [&] { return name_of(context_attention(name)); });
}

/// true or false; or DeepSpeed's section, whose number_checkpoints says how many blocks keep their input only.
inline void read_activation_checkpointing(ConfigSection& root, TrainSettings& s) {
  const std::string key = "activation_checkpointing";
  if (const auto* node = root.node(key); !node || node->kind != detail::ConfigNode::Kind::object) {
    take(root, key, s.recompute, s, "--recompute");
    return;
  }
  auto section = root.section(key);
  if (take(section, "number_checkpoints", s.recompute_blocks, s, "--recompute", 0, 1e6))
    s.recompute = s.recompute_blocks > 0;
  settle_keys(section, key + ".", s.notes);
  section.finish();
}

/// tensorboard and csv_monitor {enabled, output_path, job_name}: a folder, empty where it is not enabled.
inline std::string read_monitor(ConfigSection& root, const std::string& key) {
  auto section = root.section(key);
  bool enabled = false;
  section.read("enabled", enabled);
  std::string path, job = "DeepSpeedJobName";
  if (enabled) section.read("output_path", path), section.read("job_name", job);
  for (auto name : {"output_path", "job_name"}) (void)section.node(name);
  section.finish();
  if (!enabled) return "";
  return path.empty() || path.back() == '/' ? path + job : path + "/" + job;
}

}  // namespace deepspeed

/// Reads the keys of docs/deepspeed.md, and "steps" and "seed". The caller reads sections of its own and then calls
/// root.finish(). Throws ConfigError.
inline void read_deepspeed(ConfigSection& root, TrainSettings& s) {
  using deepspeed::take;
  deepspeed::set_defaults(s);
  take(root, "train_batch_size", s.batch.batch, s, "sequences a step", 1, 1e9);
  take(root, "train_micro_batch_size_per_gpu", s.batch.micro, s, "--batch", 1, 1e9);
  take(root, "gradient_accumulation_steps", s.batch.accumulation, s, "--micro-batches", 1, 1e9);
  deepspeed::read_zero(root, s);
  deepspeed::read_mesh(root, s);
  deepspeed::read_precision(root, s);
  deepspeed::read_optimizer(root, s);
  deepspeed::read_scheduler(root, s);
  take(root, "gradient_clipping", s.grad_clip, s, "--grad-clip", 0, 1e6);
  deepspeed::read_activation_checkpointing(root, s);
  take(root, "seed", s.seed, s, "--seed", 0);
  take(root, "steps", s.steps, s, "--steps", 1, 1e15);
  take(root, "steps_per_print", s.steps_per_print, s, "steps_per_print", 1, 1e15);
  s.tensorboard = deepspeed::read_monitor(root, "tensorboard");
  s.csv_monitor = deepspeed::read_monitor(root, "csv_monitor");
  deepspeed::settle_keys(
      root, "", s.notes,
      {"zero_optimization", "bf16", "fp16", "optimizer", "activation_checkpointing", "tensor_parallel", "pipeline"});
}

}  // namespace zeropp
