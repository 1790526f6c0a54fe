// SPDX-License-Identifier: Apache-2.0
// The loss of a batch: a handle to a sum in double and the number of labels it is over. In training a fused head knows
// it only after its backward.
#pragma once

#include <cstdint>
#include <memory>

#include <zeropp/base/error.hpp>

namespace zeropp {

class Loss {
 public:
  /// Adds the losses of `count` labels (nats).
  void add(double sum, std::int64_t count) const {
    state_->sum += sum;
    state_->count += count;
    state_->known = true;
  }
  bool known() const { return state_->known; }
  double sum() const { return state().sum; }
  std::int64_t count() const { return state().count; }
  /// Mean over the labels; 0 if there are none.
  double mean() const { return state().count ? state().sum / static_cast<double>(state().count) : 0; }

 private:
  struct State {
    double sum = 0;
    std::int64_t count = 0;
    bool known = false;
  };
  const State& state() const {
    if (!state_->known) throw Error("the loss of a training step is known after its backward; read it then");
    return *state_;
  }
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace zeropp
