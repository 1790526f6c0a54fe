// SPDX-License-Identifier: Apache-2.0
// Optimizer steps that were done, of which the last may still be under way: whether it counts is asked for when the
// number is.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include <zeropp/kernels/gradient_norm.hpp>

namespace zeropp {

class StepCount {
 public:
  /// A step counts as done if its gradients turn out finite.
  void add(ClipResult clip) {
    settle();
    last_ = std::move(clip);
  }
  void set(std::int64_t done) {
    last_.reset();
    done_ = done;
  }

  /// These wait for the norm of the last step, where a device is still computing it.
  std::int64_t done() const {
    settle();
    return done_;
  }
  std::int64_t skipped() const {
    settle();
    return skipped_;
  }

 private:
  void settle() const {
    if (!last_) return;
    bool done = false;
    try {
      done = last_->finite();
    } catch (...) {  // it was not done either
      last_.reset();
      ++skipped_;
      throw;
    }
    last_.reset();
    done ? ++done_ : ++skipped_;
  }

  mutable std::int64_t done_ = 0, skipped_ = 0;
  mutable std::optional<ClipResult> last_;
};

}  // namespace zeropp
