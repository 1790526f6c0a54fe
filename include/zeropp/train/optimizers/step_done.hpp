// SPDX-License-Identifier: Apache-2.0
// The result of an optimizer's step.
#pragma once

#include <utility>

#include <zeropp/kernels/gradient_norm.hpp>

namespace zeropp {

/// Whether a step was done: known when the norm is. Who asks waits for it.
class StepDone {
 public:
  explicit StepDone(ClipResult clip) : clip_(std::move(clip)) {}
  operator bool() const { return clip_.finite(); }

 private:
  ClipResult clip_;
};

}  // namespace zeropp
