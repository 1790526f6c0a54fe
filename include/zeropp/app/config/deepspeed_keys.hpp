// SPDX-License-Identifier: Apache-2.0
// DeepSpeed's keys that steer nothing here, as data: the values that say what is so anyway, and what happens to others.
// deepspeed_config.hpp reads the keys that do.
#pragma once

#include <string_view>

namespace zeropp {

struct DeepSpeedKey {
  enum Otherwise { note, refuse };

  std::string_view path;
  /// The values that hold anyway, as JSON with spaces between them. "*": any; "off": an object that is not enabled.
  std::string_view holds;
  Otherwise otherwise;     ///< with another value: a note that it has no effect, or a refusal
  std::string_view words;  ///< of the note or the refusal
};

namespace deepspeed {

inline constexpr auto note = DeepSpeedKey::note;
inline constexpr auto refuse = DeepSpeedKey::refuse;
inline constexpr std::string_view by_units = "weights are gathered by units, without a buffer of that size";
inline constexpr std::string_view offload =
    "asks for offload, which is not there yet: take it out, and use a higher "
    "stage, more ranks or activation checkpointing for memory";
inline constexpr std::string_view zeropp_communication =
    "asks for ZeRO++, which is not there yet: take it out, and weights and gradients travel whole over all ranks";
inline constexpr std::string_view gone = "was removed from DeepSpeed and is not here either: take it out";
inline constexpr std::string_view not_here = "is not there: take it out";

inline constexpr DeepSpeedKey keys[] = {
    {"zero_allow_untested_optimizer", "*", note, ""},
    {"zero_force_ds_cpu_optimizer", "*", note, ""},
    {"disable_allgather", "*", note, ""},
    {"disable_python_gc", "*", note, ""},
    {"dataloader_drop_last", "*", note, ""},
    {"timers", "*", note, ""},
    {"aio", "*", note, ""},
    {"wall_clock_breakdown", "false", note, "the step line and metrics.jsonl hold the time of a step"},
    {"memory_breakdown", "false", note, "--dry-run prints it"},
    {"dump_state", "false", note, "--dry-run prints the settings"},
    {"log_level", "", note, "there are no levels"},
    {"vocabulary_size", "", note, "the size is model.vocab_size or --vocab-size"},
    {"prescale_gradients", "false", note, "gradients are divided before they are summed, in fp32"},
    {"gradient_predivide_factor", "1", note, "gradients are divided before they are summed, in fp32"},
    {"gradient_allreduce_op", "\"mean\"", refuse, "must be \"mean\": gradients are averaged over data ranks"},
    {"communication_data_type", "\"fp32\"", refuse, "must be \"fp32\": gradients are summed in fp32"},
    {"seq_parallel_communication_data_type", "\"fp32\"", note, "context ranks send what they compute in"},
    {"use_data_before_expert_parallelism", "false", note, "there are no experts"},
    {"managed_gradient_accumulation", "true", refuse, "must be true: the loop accumulates"},
    {"expert_parallel", "off", refuse, not_here},
    {"torch_autocast", "off", refuse, "is not there: enable bf16 or fp16 in its place"},
    {"amp", "off", refuse, "is Apex's and was removed from DeepSpeed: enable bf16 or fp16 in its place"},
    {"flops_profiler", "off", note, "each step line prints the rate (mfu)"},
    {"comms_logger", "off", note, "--simulate prints the traffic"},
    {"autotuning", "off", refuse, "is not there: --dry-run and --simulate tell memory and time of a setting"},
    {"hybrid_engine", "off", refuse, not_here},
    {"data_efficiency", "off", refuse, not_here},
    {"wandb", "off", refuse, "is not there: enable tensorboard or csv_monitor in its place"},
    {"comet", "off", refuse, "is not there: enable tensorboard or csv_monitor in its place"},
    {"weight_quantization", "off", refuse, not_here},
    {"datastates_ckpt", "false", refuse, "is not there: checkpoints are written by all ranks anyway"},
    {"nebula", "off", refuse, gone},
    {"elasticity", "off", refuse, "was removed from DeepSpeed: any number of ranks resumes a checkpoint here"},
    {"compression_training", "off", refuse, gone},
    {"quantize_training", "off", refuse, gone},
    {"sparse_gradients", "false", refuse, gone},
    {"sparse_attention", "off", refuse, gone},
    {"graph_harvesting", "false", refuse, "was removed from DeepSpeed; --no-graph steers CUDA graphs here"},
    {"curriculum_learning", "off", refuse, gone},
    {"progressive_layer_drop", "off", refuse, gone},
    {"eigenvalue", "off", refuse, gone},

    {"zero_optimization.overlap_comm", "true", note, "it always overlaps where the device can"},
    {"zero_optimization.contiguous_gradients", "true", note, "gradients of a unit always lie in one buffer"},
    {"zero_optimization.reduce_scatter", "true", note, "gradients are always reduced to their owners"},
    {"zero_optimization.use_multi_rank_bucket_allreduce", "true", note, "a bucket holds all ranks' parts"},
    {"zero_optimization.allgather_partitions", "true", note, "weights are always gathered"},
    {"zero_optimization.allgather_bucket_size", "500000000", note, by_units},
    {"zero_optimization.sub_group_size", "1000000000", note, "Adam takes no buffer"},
    {"zero_optimization.param_persistence_threshold", "100000", note, by_units},
    {"zero_optimization.stage3_param_persistence_threshold", "100000", note, by_units},
    {"zero_optimization.model_persistence_threshold", "9223372036854775807", note, by_units},
    {"zero_optimization.stage3_model_persistence_threshold", "9223372036854775807", note, by_units},
    {"zero_optimization.max_live_parameters", "1000000000", note, by_units},
    {"zero_optimization.stage3_max_live_parameters", "1000000000", note, by_units},
    {"zero_optimization.max_reuse_distance", "1000000000", note, by_units},
    {"zero_optimization.stage3_max_reuse_distance", "1000000000", note, by_units},
    {"zero_optimization.module_granularity_threshold", "0", note, by_units},
    {"zero_optimization.stage3_module_granularity_threshold", "0", note, by_units},
    {"zero_optimization.use_all_reduce_for_fetch_params", "false", note, by_units},
    {"zero_optimization.stage3_use_all_reduce_for_fetch_params", "false", note, by_units},
    {"zero_optimization.allgather_sequential", "false", note, by_units},
    {"zero_optimization.stage3_allgather_sequential", "false", note, by_units},
    {"zero_optimization.leaf_module", "*", note, ""},
    {"zero_optimization.gather_16bit_weights_on_model_save", "*", note, ""},
    {"zero_optimization.stage3_gather_16bit_weights_on_model_save", "*", note, ""},
    {"zero_optimization.stage3_gather_fp16_weights_on_model_save", "*", note, ""},
    {"zero_optimization.memory_efficient_linear", "*", note, ""},
    {"zero_optimization.ignore_unused_parameters", "*", note, ""},
    {"zero_optimization.pipeline_loading_checkpoint", "*", note, ""},
    {"zero_optimization.override_module_apply", "*", note, ""},
    {"zero_optimization.log_trace_cache_warnings", "*", note, ""},
    {"zero_optimization.enable_sanity_checks", "*", note, ""},
    {"zero_optimization.save_muon_momentum_buffer_in_memory", "*", note, ""},
    {"zero_optimization.elastic_checkpoint", "*", note, ""},
    {"zero_optimization.legacy_stage1", "false", note, "there is one stage 1"},
    {"zero_optimization.round_robin_gradients", "false", note, "gradients stay where they are summed"},
    {"zero_optimization.load_from_fp32_weights", "true", note, "masters always come from a checkpoint's fp32"},
    {"zero_optimization.compute_grad_norm", "true", note, "the norm is always taken"},
    {"zero_optimization.parameter_alignment", "false", note, "kernels need none"},
    {"zero_optimization.zenflow", "", refuse, offload},
    {"zero_optimization.cpu_offload", "false", refuse, offload},
    {"zero_optimization.cpu_offload_param", "false", refuse, offload},
    {"zero_optimization.cpu_offload_use_pin_memory", "*", note, ""},
    {"zero_optimization.zero_hpz_partition_size", "1 0", refuse, zeropp_communication},
    {"zero_optimization.zero_quantized_weights", "false", refuse, zeropp_communication},
    {"zero_optimization.zero_quantized_nontrainable_weights", "false", refuse, zeropp_communication},
    {"zero_optimization.zero_quantized_gradients", "false", refuse, zeropp_communication},
    {"zero_optimization.zeropp_loco_param", "", refuse, gone},
    {"zero_optimization.mics_shard_size", "-1", refuse, gone},
    {"zero_optimization.mics_hierarchical_params_gather", "false", refuse, gone},

    {"bf16.immediate_grad_update", "*", note, ""},
    {"bf16.check_grad_overflow", "true", note, "all ranks always skip a step that is not finite"},
    {"bf16.bf16_master_weights_and_grads", "false", refuse,
     "must be false: masters keep fp32 here (16 bits beside each bf16 weight)"},
    {"bf16.bf16_optimizer_states", "false", refuse, "must be false: Adam's moments are fp32"},
    {"fp16.auto_cast", "*", note, ""},
    {"fp16.fp16_master_weights_and_grads", "false", refuse, "must be false: masters and gradients are fp32"},
    {"fp16.opt_level", "", refuse, "is Apex's and unknown to DeepSpeed: take it out"},
    {"fp16.dynamic_loss_scale", "", refuse, "is unknown to DeepSpeed: \"loss_scale\": 0 is a scale that adapts"},
    {"fp16.fp16_scale_tolerance", "", refuse, "is unknown to DeepSpeed: take it out"},

    {"optimizer.legacy_fusion", "*", note, ""},
    {"optimizer.params.bias_correction", "true", refuse, "must be true: Adam corrects its moments"},
    {"optimizer.params.amsgrad", "false", refuse, "must be false: AdamW keeps two moments"},
    {"optimizer.params.torch_adam", "*", note, ""},
    {"optimizer.params.set_grad_none", "*", note, ""},
    {"optimizer.params.fp32_optimizer_states", "true", refuse, "must be true: Adam's moments are fp32"},
    {"optimizer.params.max_grad_norm", "0", refuse,
     "is refused by DeepSpeed too: take it out, \"gradient_clipping\" at the top of the file clips"},

    {"activation_checkpointing.partition_activations", "false", note, "what a block keeps is not shared"},
    {"activation_checkpointing.contiguous_memory_optimization", "*", note, ""},
    {"activation_checkpointing.synchronize_checkpoint_boundary", "*", note, ""},
    {"activation_checkpointing.profile", "false", note, "the step line holds the time of a step"},
    {"activation_checkpointing.cpu_checkpointing", "false", refuse, offload},

    {"data_types.grad_accum_dtype", "\"fp32\"", refuse, "must be \"fp32\": gradients are summed in fp32"},
    {"data_types.param_dtype", "", refuse, "must be null: bf16 or fp16 says the precision"},
    {"data_types.buffer_dtype", "", refuse, "must be null: the model has no buffers"},
    {"data_types.keep_in_fp32_modules", "", note, "the model has no buffers"},
    {"checkpoint.tag_validation", "*", note, ""},
    {"checkpoint.load_universal", "*", note, ""},
    {"checkpoint.parallel_write", "*", note, ""},
    {"checkpoint.writer", "", note, "there is one writer"},
    {"checkpoint.checkpoint_serialization", "*", note, ""},
    {"checkpoint.use_node_local_storage", "false", refuse,
     "must be false: a checkpoint is one folder that all ranks reach; give a shared one by --out"},
    {"compile.deepcompile", "false", note, "kernels are compiled ahead"},
    {"compile.disable", "*", note, ""},
    {"compile.backend", "", note, "kernels are compiled ahead"},
    {"compile.free_activation", "*", note, ""},
    {"compile.free_activation_threshold", "*", note, ""},
    {"compile.offload_activation", "false", refuse, offload},
    {"compile.offload_activation_pin_memory", "*", note, ""},
    {"compile.offload_opt_states", "false", refuse, offload},
    {"compile.offload_parameters", "false", refuse, offload},
    {"compile.double_buffer", "*", note, ""},
    {"compile.symmetric_memory", "*", note, ""},
    {"compile.debug_log", "*", note, ""},
    {"compile.sync_before_reduce", "*", note, ""},
    {"compile.sync_after_reduce", "*", note, ""},
    {"compile.sync_before_allgather", "*", note, ""},
    {"compile.sync_after_allgather", "*", note, ""},
    {"compile.keep_int_input_tensors", "*", note, ""},
    {"compile.keep_all_input_tensors", "*", note, ""},
    {"compile.passes", "", note, "kernels are compiled ahead"},

    {"tensor_parallel.tp_overlap_comm", "false", note, "sums over tensor ranks are waited for"},
    {"tensor_parallel.dtype", "*", note, ""},
    {"tensor_parallel.tp.tp_size", "1", note, "autotp_size says the tensor ranks"},
    {"tensor_parallel.tp.tp_grain_size", "*", note, ""},
    {"tensor_parallel.tp.mpu", "", note, "the mesh is the program's"},
    {"tensor_parallel.tp.tp_group", "", note, "the mesh is the program's"},
    {"tensor_parallel.injection_policy_tuple", "", note, "layers know how they are split"},
    {"tensor_parallel.partition_config", "", note, "layers know how they are split"},
    {"tensor_parallel.preset_model", "", note, "layers know how they are split"},
    {"tensor_parallel.keep_module_on_host", "*", note, ""},
    {"tensor_parallel.replace_with_kernel_inject", "*", note, ""},
    {"tensor_parallel.kernel_inject", "*", note, ""},
    {"pipeline.partition", "\"best\"", note, "blocks are shared evenly"},
    {"pipeline.seed_layers", "*", note, ""},
    {"pipeline.pipe_partitioned", "*", note, ""},
    {"pipeline.grad_partitioned", "*", note, ""},
    {"pipeline.use_reentrant", "*", note, ""},
    {"pipeline.activation_checkpoint_interval", "0", refuse, "must be 0: --recompute says it"},
};

}  // namespace deepspeed

}  // namespace zeropp
