// SPDX-License-Identifier: Apache-2.0
// An optimizer as checkpoints, plans and training loops see it, whatever the model's layers: named slots of state
// beside each weight, and a step. FusedElementwise makes one of a rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include <zeropp/parallel/sharding/step_count.hpp>
#include <zeropp/train/optimizers/step_done.hpp>

namespace zeropp {

/// S: the type of the slots' elements.
template <class S>
class Optimizer {
 public:
  using State = S;

  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  virtual ~Optimizer() = default;

  /// Updates the weights with the gradients of the last train(), and sends them where they are needed. Where the clip
  /// found a NaN or an infinity, all ranks skip the step together: it changes nothing. A collective.
  virtual StepDone step(float learning_rate, const ClipResult& clip = {}) = 0;

  /// In messages and checkpoints.
  virtual std::string_view name() const = 0;
  /// The names of the slots: a checkpoint holds "<parameter>/<slot>".
  virtual std::span<const std::string_view> slots() const = 0;
  /// Slot s of unit i over units()[i].updated().
  virtual std::span<S> slot(std::size_t s, std::size_t i) = 0;

  std::int64_t steps() const { return steps_.done(); }
  void set_steps(std::int64_t steps) { steps_.set(steps); }
  /// Steps left out because of gradients that were not finite.
  std::int64_t skipped() const { return steps_.skipped(); }

 protected:
  Optimizer() = default;
  StepCount steps_;
};

/// The type of an optimizer's state in a precision: float; double for double weights.
template <class P>
using state_t = std::conditional_t<std::is_same_v<typename P::Weight, double>, double, float>;

}  // namespace zeropp
