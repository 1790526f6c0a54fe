// SPDX-License-Identifier: Apache-2.0
// Settings from JSON: what DeepSpeed's keys amount to, and every way in which a file is refused, with its line.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include <zeropp/app/config/deepspeed_config.hpp>
#include <zeropp/app/config/flag_numbers.hpp>
#include <zeropp/app/config/settle.hpp>
#include <zeropp/app/log/settings_report.hpp>

using namespace zeropp;

namespace {

TrainSettings read(const std::string& content) {
  const ConfigFile file("ds.json", content, ConfigDialect::deepspeed);
  auto root = file.root();
  TrainSettings settings;
  read_deepspeed(root, settings);
  root.finish();
  return settings;
}

void refused(const std::string& content, const char* sentence) {
  CAPTURE(content);
  CHECK_THROWS_WITH_AS(read(content), doctest::Contains(sentence), ConfigError);
}

}  // namespace

TEST_CASE("DeepSpeed's keys") {
  auto s = read(R"({
    "train_batch_size": 48, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3,
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 5e5, "prefetch_units": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.8, 0.999], "eps": 1e-6, "weight_decay": 0.2}},
    "scheduler": {"type": "warmupcosinelr", "params": {"total_num_steps": 900, "warmup_num_steps": 30, "cos_min_ratio": 0.1}},
    "bf16": {"enabled": true}, "gradient_clipping": 0.5, "seed": 18446744073709551615, "activation_checkpointing": true
  })");
  settle_rates(s), settle_batch(s, 4);
  CHECK(s.rows == 48);
  CHECK(s.micro_batch == 4);
  CHECK(s.passes == 3);
  CHECK(s.micro_batches(4) == 3);
  CHECK(s.zero == 3);
  CHECK(s.bucket_elements == 500000);
  CHECK(s.prefetch == 1);
  CHECK(s.lr == 1e-3);
  CHECK(s.betas == std::array{0.8f, 0.999f});
  CHECK(s.epsilon == 1e-6f);
  CHECK(s.weight_decay == 0.2f);
  CHECK(s.steps == 900);
  CHECK(s.warmup_steps == 30);
  CHECK(s.rate(899) == doctest::Approx(1e-4).epsilon(1e-4));
  CHECK(s.precision == "bf16");
  CHECK(s.grad_clip == 0.5f);
  CHECK(s.seed == ~std::uint64_t{0});
  CHECK(s.recompute);

  auto mesh = read(R"({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 6,
    "tensor_parallel": {"autotp_size": 2, "sequence_parallel": true},
    "pipeline": {"stages": 4, "schedule": "interleaved", "chunks": 3}})");
  CHECK(mesh.tensor == 2);
  CHECK(mesh.pipeline == 4);
  settle_batch(mesh, 2);
  CHECK(mesh.micro_batches(2) == 6);
  CHECK(mesh.mesh(16).tensor == 2);
  CHECK(mesh.mesh(16).pipeline == 4);
  const auto parallel = mesh.parallel();
  CHECK(parallel.schedule == PipelineKind::interleaved);
  CHECK(parallel.chunks == 3);
  CHECK(parallel.sequence_parallel);
  CHECK(read(R"({"pipeline": {"schedule": "zb-v"}})").parallel().chunks == 2);
  CHECK(TrainSettings{}.parallel().chunks == 1);
}

TEST_CASE("syntax, duplicates, unknown keys, types, ranges: with the line") {
  refused("{\n\"seed\": 1,,\n}", "ds.json line 3: not valid JSON");
  refused("{\"seed\": 1,,\n\"steps\": 2}", "ds.json line 1: not valid JSON");
  refused("", "ds.json line 1: not valid JSON");
  refused("{\"seed\": 1} 7", "ds.json line 1: not valid JSON");
  refused("{\n\"seed\": SEED\n}", "ds.json line 2: SEED stands without quotes");
  refused("{\n/* \n\"seed\": 1}", "ds.json line 2: the comment that begins here has no end");
  refused("[1]", "\"the file\" must be an object, got an array");
  refused("{\n\"seed\": 1,\n\n\"seed\": 2}", "ds.json line 4: the key \"seed\" stands there again, first on line 2");
  refused("{\"bf16\": {\"enabled\": true,\n \"enabled\": true}}", "line 2: the key \"enabled\" stands there again");
  refused("{\n\n\"gradient_cliping\": 1}",
          "line 3: unknown key \"gradient_cliping\"; the nearest that exists is \"gradient_clipping\"");
  refused("{\n\"backend\": \"nccl\"}",
          "line 2: unknown key \"backend\"; none is near it: take it out, or begin it with _");
  refused("{\"zero_optimization\": {\n\"stages\": 1}}",
          "line 2: unknown key \"stages\" in \"zero_optimization\"; the nearest that exists is \"stage\"");
  refused("{\"optimizer\": {\"params\": {\n\n\"weight_decy\": 1}}}",
          "line 3: unknown key \"weight_decy\" in \"optimizer.params\"");
  refused("{\n\"seed\": \"one\"}", "line 2: \"seed\" must be a whole number, got \"one\"");
  refused("{\"seed\": 1.5}", "must be a whole number, got 1.5");
  refused("{\"seed\": -1}", "\"seed\" must be at least 0, got -1");
  refused("{\"bf16\": {\"enabled\": 1}}", "\"bf16.enabled\" must be true or false, got 1");
  refused("{\"zero_optimization\": {\"stage\": 4}}", "\"zero_optimization.stage\" must be from 0 to 3, got 4");
  refused("{\"zero_optimization\": 2}", "\"zero_optimization\" must be an object, got 2");
  refused("{\"optimizer\": {\"params\": {\"betas\": [0.9]}}}", "must be an array of 2 numbers");
  refused("{\"optimizer\": {\"params\": {\"betas\": [0.9, \"x\"]}}}",
          "\"optimizer.params.betas[1]\" must be a number, got \"x\"");
  refused("{\"optimizer\": {\"params\": {\"lr\": 1e999}}}", "ds.json line 1");
  refused("{\"optimizer\": {\n\"type\": \"Lion\"}}",
          "line 2: \"optimizer.type\" must be AdamW, Adam or FusedAdam, got \"Lion\"");
  refused("{\"scheduler\": {\"type\": \"CosineAnnealingLR\"}}",
          "must be WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle or LRRangeTest, got \"CosineAnnealingLR\"");
  refused("{\"pipeline\": {\n\"schedule\": \"dualpipe\"}}",
          "line 2: \"pipeline.schedule\" must be gpipe, 1f1b, interleaved, zb-h1 or zb-v, got \"dualpipe\"");
  refused("{\"tensor_parallel\": {\"autotp_size\": -1}}", "\"tensor_parallel.autotp_size\" must be from 0 to");
}

TEST_CASE("fp16 and its loss scale") {
  const auto s =
      read(R"({"fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 500,
                                   "hysteresis": 3, "min_loss_scale": 4}, "bf16": {"enabled": false}})");
  CHECK(s.precision == "fp16");
  CHECK(LossScaler{s.loss_scaling()}.state() == LossScaleState{4096, 0, 3});
  CHECK(s.loss_scaling().window == 500);
  CHECK(s.loss_scaling().minimum == 4);
  const auto fixed = read(R"({"fp16": {"enabled": true, "loss_scale": 128}})");
  CHECK(LossScaler{fixed.loss_scaling()}.scale() == 128);
  CHECK(!LossScaler{fixed.loss_scaling()}.adapts());
  CHECK(LossScaler{read(R"({"fp16": {"enabled": true}})").loss_scaling()}.state() == LossScaleState{65536, 0, 2});
  const auto off = read(R"({"fp16": {"enabled": false, "initial_scale_power": 12}, "bf16": {"enabled": true}})");
  CHECK(off.precision == "bf16");
  CHECK(LossScaler{off.loss_scaling()}.scale() == 1);
  CHECK(!LossScaler{off.loss_scaling()}.adapts());
  CHECK(read(R"({"fp16": {"enabled": false}})").precision == "fp32");

  refused("{\"bf16\": {\"enabled\": true},\n\"fp16\": {\"enabled\": true}}",
          "line 2: \"fp16\" and \"bf16\" are both enabled; a run has one precision");
  const auto fp16 = [](const std::string& more) { return "{\"fp16\": {\"enabled\": true, " + more + "}}"; };
  refused(fp16("\"loss_scale\": 100"), "\"fp16\" does not fit: loss scales are powers of two");
  refused(fp16("\"initial_scale_power\": 200"), "\"fp16.initial_scale_power\" must be from 0 to 126");
  refused(fp16("\"initial_scale_power\": 2, \"min_loss_scale\": 8"), "the initial loss scale 4 is below");
  refused(fp16("\"hysteresis\": 0"), "\"fp16.hysteresis\" must be from 1 to");
  refused(fp16("\"loss_scale_windw\": 1"), "the nearest that exists is \"loss_scale_window\"");
  refused(fp16("\"opt_level\": \"O2\""), "\"fp16.opt_level\" is Apex's and unknown to DeepSpeed");
}

TEST_CASE("batch sizes that contradict each other are refused with the nearest that fit") {
  TrainSettings s;
  s.rows = 50;
  s.micro_batch = 4;
  CHECK_THROWS_WITH_AS(s.micro_batches(3),
                       doctest::Contains("a step of 50 sequences is not micro-batch 4 x 3 ranks x a number of "
                                         "micro-batches; the nearest that is: 48 sequences"),
                       ConfigError);
  s.rows = 1;
  CHECK_THROWS_WITH_AS(s.micro_batches(3), doctest::Contains("the nearest that is: 12 sequences"), ConfigError);
  s.micro_batch = 0;
  CHECK(s.micro_batches(3) == 1);
  s.passes = 4;
  s.rows = 8;
  CHECK(s.micro_batches(2) == 4);
  CHECK_THROWS_WITH_AS(s.micro_batches(3),
                       doctest::Contains("a step of 8 sequences on 3 data ranks can not be cut into 4 micro-batches; "
                                         "at most 2"),
                       ConfigError);
  s.micro_batch = 1;
  CHECK_THROWS_WITH_AS(s.micro_batches(4), doctest::Contains("on 4 data ranks makes 2 micro-batches, not 4"),
                       ConfigError);
  s.tensor = 3;
  s.pipeline = 2;
  CHECK(s.mesh(12).tensor == 3);
  CHECK_THROWS_WITH_AS(s.mesh(8),
                       doctest::Contains("3 tensor x 2 pipeline x 1 context ranks do not divide 8 ranks; their product "
                                         "can be 1, 2, 4, 8"),
                       ConfigError);
  s.tensor = 0;
  CHECK_THROWS_AS(s.mesh(8), ConfigError);
  s.lr_schedule = "cosin";
  CHECK_THROWS_AS(s.rate(0), ConfigError);
}

TEST_CASE("any two batch sizes of a file give the third with the data ranks; flags win over each") {
  CHECK(BatchSizes{48, 4, 0}.on(3) == BatchSizes{48, 4, 4});
  CHECK(BatchSizes{48, 0, 4}.on(3) == BatchSizes{48, 4, 4});
  CHECK(BatchSizes{0, 4, 4}.on(3) == BatchSizes{48, 4, 4});
  CHECK(BatchSizes{48, 0, 0}.on(3) == BatchSizes{48, 16, 1});
  CHECK(BatchSizes{0, 4, 0}.on(3) == BatchSizes{12, 4, 1});
  CHECK(BatchSizes{48, 4, 4}.on(3) == BatchSizes{48, 4, 4});
  const auto misfit = [](const BatchSizes& sizes, std::int64_t ranks, const char* sentence) {
    CHECK_THROWS_WITH_AS(sizes.on(ranks), doctest::Contains(sentence), ConfigError);
  };
  misfit({32, 4, 1}, 1,
         "a batch of 32 is not a micro-batch of 4 x accumulation 1 x 1 data rank = 4; start 8 data ranks, "
         "or give a batch of 4 or an accumulation of 8");
  misfit({50, 4, 3}, 2, "= 24; give a batch of 48");
  misfit({50, 4, 0}, 3,
         "a batch of 50 can not be cut into a micro-batch of 4 x 3 data ranks; the nearest batch that "
         "can: 48");
  misfit({50, 0, 4}, 3, "accumulation 4 x 3 data ranks; the nearest batch that can: 48");
  misfit({50, 0, 0}, 4, "accumulation 1 x 4 data ranks; the nearest batch that can: 52");

  const std::string three =
      R"({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4})";
  auto s = read(three);
  CHECK_THROWS_WITH_AS(settle_batch(s, 3), doctest::Contains("ds.json line 1, train_batch_size"), ConfigError);
  s.origins.from_flag("--batch"), s.micro_batch = 8;
  settle_batch(s, 2);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{32, 8, 2});
  s = read(three), s.origins.from_flag("--micro-batches"), s.passes = 2;
  settle_batch(s, 2);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{32, 8, 2});
  s = read(three), s.origins.from_flag("sequences a step"), s.rows = 64;
  settle_batch(s, 2);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{64, 4, 8});
  s = read(three), s.origins.from_flag("--batch"), s.micro_batch = 0;  // all at once
  s.origins.from_flag("--micro-batches");
  settle_batch(s, 2);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{32, 16, 1});
  s = read(R"({"train_batch_size": "auto", "gradient_accumulation_steps": 3})");
  settle_batch(s, 2);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{30, 5, 3});
  s = read(R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": null})");
  settle_batch(s, 3);
  CHECK(BatchSizes{s.rows, s.micro_batch, s.passes} == BatchSizes{32, 0, 0});
}

TEST_CASE("DeepSpeed's defaults, names in any case, and what a file leaves open") {
  const auto s = read("{}");
  CHECK(s.zero == 0);
  CHECK(s.lr == 1e-3);
  CHECK(s.betas == std::array{0.9f, 0.999f});
  CHECK(s.weight_decay == 0);
  CHECK(s.grad_clip == 1);
  CHECK(s.lr_schedule == "constant");
  CHECK(s.warmup_steps == 0);
  CHECK(s.precision == "fp32");
  CHECK(s.origins.of("--zero") == "DeepSpeed's default");
  CHECK(!s.origins.said("--zero"));
  for (auto type : {"Adam", "adamw", "ADAMW", "FusedAdam"})
    CHECK(read(text("{\"optimizer\": {\"type\": \"", type, "\", \"params\": {\"lr\": 1e-5}}}")).lr == 1e-5);
  CHECK(read(R"({"optimizer": {"type": "AdamW", "params": {"adam_w_mode": false}}})").notes.empty());
  refused(R"({"optimizer": {"type": "Adam", "params": {"adam_w_mode": false}}})",
          "\"optimizer.params.adam_w_mode\" must");
  refused(R"({"optimizer": {"params": {"max_grad_norm": 1.0}}})",
          "take it out, \"gradient_clipping\" at the top of the file");
  const auto beside = read(R"({"optimizer": {"type": "Adam", "eps": 1e-6, "params": {"lr": 1e-5}}})");
  CHECK(beside.epsilon == 1e-8f);
  CHECK(describe_notes(beside) ==
        "without effect here: optimizer.eps (DeepSpeed reads it within optimizer.params only)");

  TrainSettings program;
  program.precision = "auto";
  const ConfigFile file("ds.json", R"({  # as people write it
    "_comment": "this one", // and that
    "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto", "min_loss_scale": 1e-10}, /* over
    two lines */ "optimizer": {"params": {"lr": "auto", "betas": "auto"},},
    "zero_optimization": {"stage": 3, "_note": 1, "reduce_bucket_size": "auto",},
  })",
                        ConfigDialect::deepspeed);
  auto root = file.root();
  read_deepspeed(root, program);
  root.finish();
  CHECK(program.precision == "auto");
  CHECK(program.lr == 1e-3);
  CHECK(program.zero == 3);
  CHECK(program.origins.of("--zero") == "ds.json line 5, zero_optimization.stage");
  CHECK(read(R"({"bfloat16": {"enabled": true}, "fp16": {"enabled": false, "min_loss_scale": -3}})").precision ==
        "bf16");
  refused(R"({"bf16": {"enable": true}})",
          "unknown key \"enable\" in \"bf16\"; the nearest that exists is \"enabled\"");
  refused(R"({"csv_monitor": {"enable": true}})", "the nearest that exists is \"enabled\"");
  CHECK(read(R"({"zero_optimization": true})").zero == 1);
  CHECK(read(R"({"steps_per_print": 1e5})").steps_per_print == 100000);
  CHECK(read(R"({"activation_checkpointing": {"number_checkpoints": 3, "profile": false}})").recompute_blocks == 3);
  CHECK(!read(R"({"activation_checkpointing": {"partition_activations": false}})").recompute);
  CHECK(read(R"({"tensorboard": {"enabled": true, "output_path": "runs/", "job_name": "a"}})").tensorboard == "runs/a");
  CHECK(read(R"({"csv_monitor": {"enabled": true}})").csv_monitor == "DeepSpeedJobName");
  CHECK(read(R"({"csv_monitor": {"enabled": false, "job_name": 7}})").csv_monitor.empty());
  CHECK(read(R"({"fp16": {"enabled": true, "consecutive_hysteresis": true}})").loss_scale.consecutive_hysteresis);
}

TEST_CASE("each key of DeepSpeed 0.19.8 at its default: accepted, with nothing to say") {
  auto s = read(R"({
    "train_batch_size": null, "train_micro_batch_size_per_gpu": null, "gradient_accumulation_steps": null,
    "managed_gradient_accumulation": true, "steps_per_print": null, "dump_state": false, "disable_allgather": false,
    "disable_python_gc": false, "communication_data_type": null, "seq_parallel_communication_data_type": "fp32",
    "prescale_gradients": false, "gradient_predivide_factor": 1.0, "gradient_allreduce_op": "mean",
    "gradient_clipping": 1.0, "zero_allow_untested_optimizer": false, "zero_force_ds_cpu_optimizer": true,
    "wall_clock_breakdown": false, "memory_breakdown": false, "use_data_before_expert_parallelism": false,
    "dataloader_drop_last": false, "log_level": null, "vocabulary_size": null,
    "optimizer": {"type": "AdamW", "legacy_fusion": false, "params": {"lr": 1e-3, "bias_correction": true,
      "betas": [0.9, 0.999], "eps": 1e-8, "adam_w_mode": true, "weight_decay": 0.0, "amsgrad": false,
      "set_grad_none": true, "torch_adam": false}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.0, "warmup_max_lr": null,
      "warmup_num_steps": 1000, "warmup_type": "log"}},
    "zero_optimization": {"stage": 0, "contiguous_gradients": true, "reduce_scatter": true, "reduce_bucket_size": 5e8,
      "use_multi_rank_bucket_allreduce": true, "allgather_partitions": true, "allgather_bucket_size": 5e8,
      "overlap_comm": null, "compute_grad_norm": true, "load_from_fp32_weights": true, "elastic_checkpoint": false,
      "offload_param": {"device": "none", "nvme_path": null, "buffer_count": 5, "buffer_size": 1e8, "max_in_cpu": 1e9,
        "pin_memory": true},
      "offload_optimizer": {"device": "none", "nvme_path": null, "buffer_count": 4, "pin_memory": true,
        "pipeline_read": false, "pipeline_write": false, "fast_init": false, "ratio": 1.0, "super_offload": false,
        "cpuadam_cores_perc": 0.8},
      "zenflow": null, "sub_group_size": 1e9, "cpu_offload_param": null, "cpu_offload_use_pin_memory": null,
      "cpu_offload": null, "stage3_prefetch_bucket_size": 5e7, "stage3_param_persistence_threshold": 1e5,
      "stage3_model_persistence_threshold": 9223372036854775807, "stage3_max_live_parameters": 1e9,
      "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": false,
      "stage3_module_granularity_threshold": 0, "stage3_use_all_reduce_for_fetch_params": false,
      "stage3_allgather_sequential": false, "stage3_gather_fp16_weights_on_model_save": false,
      "ignore_unused_parameters": true, "legacy_stage1": false, "round_robin_gradients": false,
      "parameter_alignment": false, "zero_hpz_partition_size": 1, "zero_quantized_weights": false,
      "zero_quantized_nontrainable_weights": false, "zero_quantized_gradients": false, "memory_efficient_linear": true,
      "pipeline_loading_checkpoint": false, "override_module_apply": true, "log_trace_cache_warnings": false,
      "enable_sanity_checks": false, "save_muon_momentum_buffer_in_memory": false,
      "leaf_module": {"classes": [], "names": [], "name_suffixes": []}},
    "bf16": {"enabled": false, "immediate_grad_update": false, "check_grad_overflow": true,
      "bf16_master_weights_and_grads": false, "bf16_optimizer_states": false},
    "fp16": {"enabled": false, "auto_cast": false, "loss_scale": 0, "initial_scale_power": 16,
      "loss_scale_window": 1000, "hysteresis": 2, "consecutive_hysteresis": false, "min_loss_scale": 1,
      "fp16_master_weights_and_grads": false},
    "torch_autocast": {"enabled": false, "dtype": null, "lower_precision_safe_modules": null},
    "activation_checkpointing": {"partition_activations": false, "number_checkpoints": null,
      "contiguous_memory_optimization": false, "synchronize_checkpoint_boundary": false, "profile": false,
      "cpu_checkpointing": false},
    "flops_profiler": {"enabled": false, "recompute_fwd_factor": 0.0, "profile_step": 1, "module_depth": -1,
      "top_modules": 1, "detailed": true, "output_file": null},
    "comms_logger": {"enabled": false, "prof_all": true, "prof_ops": [], "verbose": false, "debug": false},
    "tensorboard": {"enabled": false, "output_path": "", "job_name": "DeepSpeedJobName"},
    "csv_monitor": {"enabled": false, "output_path": "", "job_name": "DeepSpeedJobName"},
    "wandb": {"enabled": false, "group": null, "team": null, "project": "deepspeed"},
    "comet": {"enabled": false, "samples_log_interval": 100},
    "autotuning": {"enabled": false}, "hybrid_engine": {"enabled": false, "max_out_tokens": 512},
    "data_efficiency": {"enabled": false, "seed": 1234}, "expert_parallel": {"enabled": false},
    "datastates_ckpt": false, "weight_quantization": null, "timers": {"throughput": {"enabled": true, "synchronized": true}},
    "aio": {"block_size": 1048576, "queue_depth": 8, "intra_op_parallelism": 1, "single_submit": false,
      "overlap_events": true, "use_gds": false},
    "checkpoint": {"tag_validation": "WARN", "load_universal": false, "use_node_local_storage": false,
      "parallel_write": {"pipeline_stage": false}, "checkpoint_serialization": true, "writer": null},
    "data_types": {"grad_accum_dtype": null, "param_dtype": null, "buffer_dtype": null, "keep_in_fp32_modules": "auto"},
    "compile": {"deepcompile": false, "free_activation": false, "free_activation_threshold": 10485760,
      "offload_activation": false, "offload_activation_pin_memory": true, "offload_opt_states": false,
      "double_buffer": true, "symmetric_memory": false, "debug_log": false, "offload_parameters": false,
      "sync_before_reduce": false, "sync_after_reduce": false, "sync_before_allgather": false,
      "sync_after_allgather": false, "keep_int_input_tensors": true, "keep_all_input_tensors": false, "passes": null},
    "tensor_parallel": {"autotp_size": 0, "dtype": "torch.float16", "tp_overlap_comm": false,
      "tp": {"tp_size": 1, "tp_grain_size": 1, "mpu": null, "tp_group": null}, "injection_policy_tuple": null,
      "partition_config": null, "preset_model": null, "keep_module_on_host": false, "replace_with_kernel_inject": false},
    "pipeline": {"stages": "auto", "partition": "best", "seed_layers": false, "activation_checkpoint_interval": 0,
      "pipe_partitioned": true, "grad_partitioned": true}
  })");
  CHECK(describe_notes(s) == "");
  const auto bare = read("{\"scheduler\": {\"type\": \"WarmupLR\"}}");
  s.bucket_elements = bare.bucket_elements;  // the only default that is another here
  settle_rates(s);
  CHECK(s.compared() == bare.compared());
}

TEST_CASE("keys that steer nothing hold, are noted, or are refused by name") {
  for (auto holds : {R"("overlap_comm": true)", R"("zero_quantized_weights": false)", R"("sub_group_size": 1e9)",
                     R"("offload_optimizer": {"device": "none", "pin_memory": true})", R"("offload_param": null)"})
    CHECK(read(text("{\"zero_optimization\": {", holds, "}}")).notes.empty());
  const auto s = read(R"({"zero_optimization": {"overlap_comm": false, "allgather_bucket_size": 2e8},
                          "flops_profiler": {"enabled": false, "x": 1}, "comms_logger": {"enabled": true}})");
  CHECK(describe_notes(s) ==
        "without effect here: zero_optimization.overlap_comm (it always overlaps where the device can), "
        "zero_optimization.allgather_bucket_size (weights are gathered by units, without a buffer of that size), "
        "comms_logger (--simulate prints the traffic)");
  for (auto device : {"cpu", "nvme"})
    refused(text("{\"zero_optimization\": {\n\"offload_optimizer\": {\"device\": \"", device, "\"}}}"),
            "line 2: \"zero_optimization.offload_optimizer\" to");
  refused(R"({"zero_optimization": {"cpu_offload": true}})", "\"zero_optimization.cpu_offload\" asks for offload");
  refused(R"({"activation_checkpointing": {"cpu_checkpointing": true}})", "cpu_checkpointing\" asks for offload");
  refused(R"({"zero_optimization": {"zero_hpz_partition_size": 8}})", "zero_hpz_partition_size\" asks for ZeRO++");
  refused(R"({"wandb": {"enabled": true}})", "\"wandb\" is not there: enable tensorboard or csv_monitor");
  refused(R"({"amp": {"enabled": true}})", "\"amp\" is Apex's");
  refused(R"({"communication_data_type": "fp16"})", "\"communication_data_type\" must be \"fp32\"");
  refused(R"({"checkpoint": {"use_node_local_storage": true}})", "\"checkpoint.use_node_local_storage\" must be false");
  refused(R"({"data_types": {"grad_accum_dtyp": "fp32"}})", "the nearest that exists is \"grad_accum_dtype\"");
  CHECK(read(R"({"data_types": {"grad_accum_dtype": "FP32"}, "amp": {"enabled": false, "opt_level": "O2"}})")
            .notes.empty());

  // docs/deepspeed.md has a line for each.
  std::ifstream page(std::string(ZEROPP_TEST_SOURCE) + "/../docs/deepspeed.md");
  std::stringstream words;
  words << page.rdbuf();
  for (const auto& rule : deepspeed::keys) {
    CAPTURE(rule.path);
    CHECK(words.str().find(rule.path.substr(rule.path.rfind('.') + 1)) != std::string::npos);
  }
}

namespace {

void rates(const std::string& scheduler, const std::vector<double>& expected) {
  CAPTURE(scheduler);
  const auto s =
      read(text("{\"steps\": 380, \"optimizer\": {\"params\": {\"lr\": 3e-4}}, \"scheduler\": {", scheduler, "}}"));
  std::size_t i = 0;
  for (std::int64_t step : {0, 1, 2, 10, 99, 100, 101, 379, 1500}) {
    CAPTURE(step);
    CHECK(s.rate(step) == doctest::Approx(expected[i++]).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("rates are those of DeepSpeed 0.19.8's schedulers") {
  rates(R"("type": "WarmupLR", "params": {})",
        {0, 0, 3.01029996e-05, 0.0001, 0.000199563519, 0.0002, 0.000200432137, 0.000257863921, 0.0003});
  rates(R"("type": "WarmupLR", "params": {"warmup_min_lr": 1e-05, "warmup_max_lr": 0.0005, 
           "warmup_num_steps": 100, "warmup_type": "linear"})",
        {1e-05, 1e-05, 1.49e-05, 5.41e-05, 0.0004902, 0.0004951, 0.0005, 0.0005, 0.0005});
  rates(R"("type": "WarmupLR", "params": {"warmup_num_steps": 1})",
        {0, 0, 0.0003, 0.0003, 0.0003, 0.0003, 0.0003, 0.0003, 0.0003});
  rates(R"("type": "WarmupDecayLR", "params": {"total_num_steps": 380, "warmup_num_steps": 100})",
        {0, 0, 0.000150514998, 0.0005, 0.000997817597, 0.001, 0.001, 7.14285714e-06, 0});
  rates(R"("type": "WarmupDecayLR", "params": {"total_num_steps": 50, "warmup_num_steps": 100, 
           "warmup_max_lr": 0.0002, "warmup_type": "linear"})",
        {0, 0, 2e-06, 1.8e-05, 0.000196, 0.000198, 0, 0, 0});
  rates(R"("type": "WarmupCosineLR", "params": {"total_num_steps": 380, "warmup_num_steps": 100})",
        {0, 0, 4.51544993e-05, 0.00015, 0.000299345279, 0.0003, 0.000299990559, 3.94405426e-08, 3e-08});
  rates(R"("type": "WarmupCosineLR", "params": {"total_num_steps": 300, "warmup_num_steps": 100, 
           "warmup_min_ratio": 0.1, "cos_min_ratio": 0.05, "warmup_type": "linear"})",
        {0, 3e-05, 3.27e-05, 5.43e-05, 0.0002946, 0.0002973, 0.00029998242, 1.5e-05, 1.5e-05});
  rates(R"("type": "OneCycle", "params": {"cycle_min_lr": 1e-05, "cycle_max_lr": 0.001, 
           "cycle_first_step_size": 100, "cycle_second_step_size": 200, "decay_step_size": 10, "decay_lr_rate": 0.1, "cycle_momentum": false})",
        {1e-05, 1.99e-05, 2.98e-05, 0.000109, 0.0009901, 0.001, 0.00099505, 5.58659218e-06, 7.69230769e-07});
  rates(R"("type": "OneCycle", "params": {"cycle_min_lr": 1e-05, "cycle_max_lr": 0.001, 
           "cycle_first_step_size": 100, "cycle_first_stair_count": 5, "cycle_momentum": false})",
        {1e-05, 1e-05, 1e-05, 1e-05, 0.000802, 0.001, 0.000802, 1e-05, 1e-05});
  rates(R"("type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.0001, "lr_range_test_step_size": 50, 
           "lr_range_test_step_rate": 2.0})",
        {0.0001, 0.000104, 0.000108, 0.00014, 0.000496, 0.0005, 0.000504, 0.001616, 0.0061});
  rates(R"("type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.0001, "lr_range_test_step_size": 50, 
           "lr_range_test_step_rate": 2.0, "lr_range_test_staircase": true})",
        {0.0001, 0.0001, 0.0001, 0.0001, 0.0003, 0.0005, 0.0005, 0.0015, 0.0061});
  // What Transformers fills in for "auto", the rate and the length of the run, is what the program says here.
  auto open = read(R"({"optimizer": {"params": {"lr": 5e-5}}, "steps": 50, "scheduler": {"type": "WarmupDecayLR",
    "params": {"warmup_max_lr": "auto", "total_num_steps": "auto", "warmup_num_steps": 10, "warmup_type": "linear"}}})");
  CHECK(open.rate(11) == 5e-5f);
  CHECK(open.rate(51) == 0);
  open.steps = 2, open.origins.from_flag("--steps");  // a flag shortens the run
  settle_rates(open);
  CHECK(read(R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 500}}})").steps == 500);
  refused(R"({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0, "cycle_max_lr": 1}}})",
          "\"scheduler.params.cycle_momentum\" must be false");
  refused(R"({"scheduler": {"type": "OneCycle", "params": {"cycle_max_lr": 1}}})",
          "\"scheduler.params.cycle_min_lr\" must");
  refused(R"({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": 1}}})",
          "is none of WarmupCosineLR's");
  refused(R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}})", "must be from 1 to");
  refused(R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}})",
          "must be \"log\" or \"linear\"");
  refused(R"({"scheduler": {"params": {"warmup_num_steps": 10}}})", "has no effect without a \"type\"");
}

TEST_CASE("defaults follow what was said, and refusals name the flag or the key") {
  TrainSettings s;
  settle_rates(s);
  CHECK(static_cast<float>(s.min_lr) == 1e-4f);  // as ever
  CHECK(s.warmup_steps == 95);
  s.lr = 5e-6, s.steps = 12, s.origins.from_flag("--lr"), s.origins.from_flag("--steps");
  settle_rates(s);
  CHECK(s.min_lr == doctest::Approx(2.5e-7));
  CHECK(s.warmup_steps == 3);
  s.min_lr = 1e-4, s.origins.from_flag("--min-lr");
  CHECK_THROWS_WITH_AS(settle_rates(s), "--min-lr must be from 0 to --lr = 5e-06, got 1e-04", ConfigError);
  s.min_lr = 0, s.warmup_steps = 13, s.origins.from_flag("--warmup-steps");
  CHECK_THROWS_WITH_AS(settle_rates(s),
                       doctest::Contains("--warmup-steps: a warm-up of 13 steps does not fit a training "
                                         "of 12 steps (--steps); give at most 12"),
                       ConfigError);
  s = read(R"({"scheduler": {"type": "WarmupLR"}})");  // 1000 steps of warm-up in a run of 380
  settle_rates(s);
  CHECK(s.warmup_steps == 1000);
  CHECK(describe_rates(s).starts_with("learning rate at step 0: 0, 1: 0, 10: 0.00033333"));
  s.origins.from_flag("--min-lr");
  CHECK_THROWS_WITH_AS(settle_rates(s),
                       doctest::Contains("--min-lr is where the schedules cosine and linear end; "
                                         "--lr-schedule (ds.json line 1, scheduler.type) is WarmupLR"),
                       ConfigError);
  s = read(R"({"scheduler": {"type": "LRRangeTest"}})");
  s.origins.from_flag("--lr");
  CHECK_THROWS_WITH_AS(settle_rates(s),
                       doctest::Contains("--lr: --lr-schedule (ds.json line 1, scheduler.type) is "
                                         "LRRangeTest, which sets its own rates"),
                       ConfigError);
  s.lr_schedule = "cosine", s.origins.from_flag("--lr-schedule");
  settle_rates(s);
  CHECK(!s.schedule);
  CHECK(s.warmup_steps == 95);
}

TEST_CASE("numbers of flags are never cut to fit") {
  const auto digits = [](std::string word) {
    CHECK(wrong_integer<std::int64_t>(word).empty());
    return word;
  };
  CHECK(digits("-12") == "-12");
  CHECK(digits("1e5") == "100000");
  CHECK(digits("9223372036854775807") == "9223372036854775807");
  for (std::string word : {"1e20", "9223372036854775808", "1.5", "1x", "", "ten", "nan", "inf"})
    CHECK(wrong_integer<std::int64_t>(word).starts_with("must be a whole number from -9223372036854775808 to"));
  for (std::string word : {"-1", "1e20", "-1e3"})
    CHECK(wrong_integer<std::uint64_t>(word) ==
          text("must be a whole number from 0 to 18446744073709551615, got ", word));
  for (auto word : {"0", "-2.5", "1e-4"}) CHECK(wrong_number(word).empty());
  for (auto word : {"", "1e999", "nan", "inf", "1,5", "0.1.2"}) CHECK(!wrong_number(word).empty());
}

TEST_CASE("a file without a scheduler has a constant rate without a warm-up; a flag that names one has a quarter") {
  auto s = read(R"({"train_batch_size": 16})");
  settle_rates(s);
  CHECK(s.warmup_steps == 0);
  CHECK(describe_rates(s).starts_with("learning rate at step 0: 0.001, 1: 0.001"));
  s.lr_schedule = "linear", s.origins.from_flag("--lr-schedule");
  settle_rates(s);
  CHECK(s.warmup_steps == 95);
  s = read(R"({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 380}}})");
  s.warmup_steps = -3, s.origins.from_flag("--warmup-steps");
  CHECK_THROWS_WITH_AS(settle_rates(s), doctest::Contains("--warmup-steps must be at least 0, got -3"), ConfigError);
}
