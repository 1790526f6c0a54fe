// SPDX-License-Identifier: Apache-2.0
// The loss of a batch: a handle to a sum in double and the number of labels it is over. In training a fused head knows
// it only after its backward.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

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
  /// The result of a head's kernel: a sum with its count, or a handle to one that a device is still computing.
  template <class Sum>
  void add(const Sum& sum) const {
    state_->known = true;
    if constexpr (requires { sum.wait(); })
      state_->pending.push_back([sum](State& state) {
        const auto value = sum.wait();
        state.sum += value.sum;
        state.count += value.count;
      });
    else
      add(sum.sum, sum.count);
  }
  void add(const Loss& other) const {
    add(other.known_state().sum, other.known_state().count);
    for (auto& one : other.state_->pending) state_->pending.push_back(one);
  }
  /// A handle to the same numbers as they will be when what computes them has run once more.
  Loss again() const {
    Loss other;
    *other.state_ = *state_;
    return other;
  }
  /// Waits for what a device is still computing and keeps it, or the error that it ends with, for who reads it later.
  /// Several threads may read what is settled.
  void settle() const {
    if (state_->pending.empty()) return;
    for (auto& one : std::exchange(state_->pending, {})) try {
        one(*state_);
      } catch (...) {
        state_->error = std::current_exception();
      }
  }
  bool known() const { return state_->known; }
  /// These wait where a device is still computing.
  double sum() const { return state().sum; }
  std::int64_t count() const { return state().count; }
  /// Mean over the labels; 0 if there are none.
  double mean() const { return state().count ? state().sum / static_cast<double>(state().count) : 0; }

 private:
  struct State {
    double sum = 0;
    std::int64_t count = 0;
    bool known = false;
    std::vector<std::function<void(State&)>> pending;
    std::exception_ptr error;
  };
  const State& known_state() const {
    if (!state_->known) throw Error("the loss of a training step is known after its backward; read it then");
    return *state_;
  }
  const State& state() const {
    known_state();
    settle();
    if (state_->error) std::rethrow_exception(state_->error);
    return *state_;
  }
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace zeropp
