// SPDX-License-Identifier: Apache-2.0
// An optimizer with two moments a weight, whatever the model's layers: what checkpoints and training loops work on.
// `FusedAdam` is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/parallel/sharding/step_count.hpp>
#include <zeropp/train/optimizers/step_done.hpp>

namespace zeropp {

template <class M>
class Optimizer {
 public:
  using Moment = M;

  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  virtual ~Optimizer() = default;

  /// Updates the weights with the gradients of the last train(), and sends them where they are needed. Where the clip
  /// found a NaN or an infinity, all ranks skip the step together: it changes nothing. A collective.
  virtual StepDone step(float learning_rate, const ClipResult& clip = {}) = 0;

  /// Moments of unit i over units()[i].updated().
  virtual std::span<M> first(std::size_t i) = 0;
  virtual std::span<M> second(std::size_t i) = 0;

  std::int64_t steps() const { return steps_.done(); }
  void set_steps(std::int64_t steps) { steps_.set(steps); }
  /// Steps left out because of gradients that were not finite.
  std::int64_t skipped() const { return steps_.skipped(); }

 protected:
  Optimizer() = default;
  StepCount steps_;
};

/// The type of the moments of a precision: float; double for double weights.
template <class P>
using moment_t = std::conditional_t<std::is_same_v<typename P::Weight, double>, double, float>;

}  // namespace zeropp
