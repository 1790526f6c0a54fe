// SPDX-License-Identifier: Apache-2.0
// An operation of a communicator that may still be under way, and the rules for its memory.
//
// The ranks of GPUs enqueue operations on a stream of their own, beside the stream that computes. Everything about
// memory follows from three orders, and holds for pools too, whose blocks are handed on in the order of computing:
//
//   1. An operation runs after everything that was enqueued for computing when it was called. So what it reads is
//      there, and nobody uses any more what it writes to, also where that block had another owner before.
//   2. Work enqueued for computing after wait() runs after the operation. So before wait() nothing that computes may
//      read or write what the operation writes, nor write what it reads; and no block of either may go back to its
//      pool, which would hand it to what computes next. hold() keeps blocks until then.
//   3. Operations of one communicator run in the order of their calls. Those of different communicators do not: an
//      operation whose input is the output of another communicator's is called after wait() for that one.
//
// On hosts an operation is over when its call returns: nothing is pending, and hold() keeps nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <zeropp/comm/backend.hpp>

namespace zeropp {

class Pending {
 public:
  Pending() = default;  ///< nothing
  Pending(std::shared_ptr<CommBackend> backend, std::uint64_t number)
      : backend_(number ? std::move(backend) : nullptr), number_(number) {}
  Pending(Pending&& other) noexcept
      : backend_(std::move(other.backend_)), number_(other.number_), held_(std::move(other.held_)) {}
  Pending& operator=(Pending&& other) {
    wait();
    backend_ = std::move(other.backend_);
    number_ = other.number_;
    held_ = std::move(other.held_);
    return *this;
  }
  /// Waits, so that what is forgotten is slow and not wrong. On the way out of an error it only lets go.
  ~Pending() {
    try {
      wait();
    } catch (...) {  // a runtime that fails here fails in the next call, which can say so
    }
  }

  bool under_way() const { return backend_ != nullptr; }

  /// Work enqueued from now on runs after the operation; blocks that were held are let go. The host does not wait.
  void wait() {
    if (const auto backend = std::exchange(backend_, nullptr)) backend->join(number_);
    held_.clear();
  }

  /// Keeps a block until wait(); lets go at once where nothing is under way.
  void hold(std::shared_ptr<const void> block) {
    if (under_way()) held_.push_back(std::move(block));
  }

 private:
  std::shared_ptr<CommBackend> backend_;
  std::uint64_t number_ = 0;
  std::vector<std::shared_ptr<const void>> held_;
};

}  // namespace zeropp
