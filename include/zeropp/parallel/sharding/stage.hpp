// SPDX-License-Identifier: Apache-2.0
// How much of the training state is partitioned over the data and context ranks: the stages of ZeRO (Rajbhandari et
// al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC'20), and when gradients are summed.
#pragma once

#include <cstdint>

#include <zeropp/base/shape.hpp>

namespace zeropp {

/// The state of which each rank keeps only 1/N; each stage includes the ones before it.
enum class Stage {
  none,              ///< nothing: every rank holds and updates everything
  optimizer_states,  ///< ZeRO-1
  gradients,         ///< ZeRO-2: gradients are reduced as soon as a unit's backward is done, and its buffer is freed
  parameters         ///< ZeRO-3: weights are gathered unit by unit, before use, and released after it
};

/// When gradients are summed over ranks. It decides the order of sums, so it is a choice of its own and the same at
/// every stage: losses are then equal bit for bit over stages.
enum class Reduction {
  every_micro_batch,  ///< memory first: at stages 2 and 3 no whole gradient outlives its unit's backward
  once                ///< traffic first: whole gradients are accumulated and summed after the last micro-batch
};

}  // namespace zeropp
