// SPDX-License-Identifier: Apache-2.0
// The library, room by room. Included by name: zeropp/train/checkpoint/checkpoint.hpp, which parses JSON and takes a
// second to compile; the backends of TCP, MPI, CUDA and NCCL; the tiers of zeropp/device/tiers/; and zeropp/app/, from
// which programs like mini_gpt are made.
#pragma once

#if __cplusplus < 202002L
#error "zeropp needs C++20: add -std=c++20, or link the CMake target zeropp::zeropp, which asks for it"
#include <zeropp/nothing_that_is_there>  // ends the compilation after that one sentence
#endif

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/format.hpp>
#include <zeropp/base/function_ref.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/base/trace.hpp>
#include <zeropp/base/version.hpp>

#include <zeropp/device/clock.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/device_table.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/device/pending.hpp>
#include <zeropp/device/tensor.hpp>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/launch.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/settings.hpp>
#include <zeropp/comm/simulated/simulated.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/comm/world.hpp>

#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/kernels/cross_entropy_split.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/matmul.hpp>
#include <zeropp/kernels/norm.hpp>
#include <zeropp/kernels/partial_attention.hpp>
#include <zeropp/kernels/positions.hpp>
#include <zeropp/kernels/random_halves.hpp>
#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/rope.hpp>
#include <zeropp/kernels/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/context.hpp>
#include <zeropp/layers/context_shard.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/layer.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/layer_traits.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/loss.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/parameter.hpp>
#include <zeropp/layers/precision.hpp>
#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/rms_norm.hpp>
#include <zeropp/layers/run.hpp>
#include <zeropp/layers/run_state.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/layers/swiglu.hpp>
#include <zeropp/layers/visit.hpp>

#include <zeropp/parallel/batch.hpp>
#include <zeropp/parallel/parallelize.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/sharding/bucketed_reducer.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/parallel/sharding/sharded_engine.hpp>
#include <zeropp/parallel/sharding/sharded_model.hpp>
#include <zeropp/parallel/sharding/sharded_options.hpp>
#include <zeropp/parallel/sharding/sharded_state.hpp>
#include <zeropp/parallel/sharding/stage.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>

#include <zeropp/train/checkpoint/naming.hpp>
#include <zeropp/train/checkpoint/place.hpp>
#include <zeropp/train/checkpoint/together.hpp>
#include <zeropp/train/checkpoint/whole_tensors.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/loss_scale.hpp>
#include <zeropp/train/optimizers/adagrad.hpp>
#include <zeropp/train/optimizers/adamw.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>
#include <zeropp/train/optimizers/fused_elementwise.hpp>
#include <zeropp/train/optimizers/lion.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>
#include <zeropp/train/optimizers/parameter_group.hpp>
#include <zeropp/train/optimizers/sgd.hpp>
#include <zeropp/train/plan.hpp>
#include <zeropp/train/sampler.hpp>
#include <zeropp/train/schedule.hpp>
#include <zeropp/train/simulate/simulate.hpp>
