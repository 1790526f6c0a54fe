// SPDX-License-Identifier: Apache-2.0
// All of zeropp, room by room. What parses JSON (train/checkpoint.hpp, train/deepspeed_config.hpp) is included by name:
// it takes a second to compile.
#pragma once

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/base/trace.hpp>
#include <zeropp/base/version.hpp>

#include <zeropp/device/clock.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/device/tensor.hpp>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/launch.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/simulated.hpp>
#include <zeropp/comm/thread.hpp>

#include <zeropp/kernels/adam.hpp>
#include <zeropp/kernels/adam_stochastic.hpp>
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

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/context.hpp>
#include <zeropp/layers/context_part.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/layer.hpp>
#include <zeropp/layers/layer_norm.hpp>
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
#include <zeropp/layers/sequential.hpp>
#include <zeropp/layers/swiglu.hpp>

#include <zeropp/parallel/batch.hpp>
#include <zeropp/parallel/bucketed_reducer.hpp>
#include <zeropp/parallel/context_parallel.hpp>
#include <zeropp/parallel/parallelize.hpp>
#include <zeropp/parallel/sharded.hpp>
#include <zeropp/parallel/sharded_model.hpp>
#include <zeropp/parallel/sharded_options.hpp>
#include <zeropp/parallel/sharded_state.hpp>
#include <zeropp/parallel/stage.hpp>
#include <zeropp/parallel/tensor_parallel.hpp>

#include <zeropp/train/checkpoint/naming.hpp>
#include <zeropp/train/checkpoint/place.hpp>
#include <zeropp/train/checkpoint/together.hpp>
#include <zeropp/train/checkpoint/whole_tensors.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/data/corpus.hpp>
#include <zeropp/train/data/loader.hpp>
#include <zeropp/train/data/text.hpp>
#include <zeropp/train/data/tokenizer.hpp>
#include <zeropp/train/data/tokens.hpp>
#include <zeropp/train/evaluate.hpp>
#include <zeropp/train/fused_adam.hpp>
#include <zeropp/train/interrupt.hpp>
#include <zeropp/train/log/console.hpp>
#include <zeropp/train/log/curve.hpp>
#include <zeropp/train/log/metrics.hpp>
#include <zeropp/train/log/timeline.hpp>
#include <zeropp/train/log/trace_json.hpp>
#include <zeropp/train/loss_scale.hpp>
#include <zeropp/train/machine.hpp>
#include <zeropp/train/optimizer.hpp>
#include <zeropp/train/plan.hpp>
#include <zeropp/train/plan_report.hpp>
#include <zeropp/train/sampler.hpp>
#include <zeropp/train/schedule.hpp>
#include <zeropp/train/settings.hpp>
#include <zeropp/train/simulate.hpp>
