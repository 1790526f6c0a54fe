// SPDX-License-Identifier: Apache-2.0
// An operation that may still be under way, whoever runs it (a communicator, a lane of copies, a disk), and the rules
// for its memory.
//
// Sources run operations beside what computes: communicators of GPUs and copies on streams of their own, copies of the
// host on threads of their own. Everything about memory follows from three orders, and holds for pools too, whose
// blocks are handed on in the order of computing:
//
//   1. An operation runs after everything that was enqueued for computing when it was called. So what it reads is
//      there, and nobody uses any more what it writes to, also where that block had another owner before.
//   2. Work enqueued for computing after wait() runs after the operation. So before wait() nothing that computes may
//      read or write what the operation writes, nor write what it reads; and no block of either may go back to its
//      pool, which would hand it to what computes next. hold() keeps blocks until then.
//   3. Operations of one communicator run in the order of their calls. Operations of different sources do not: an
//      operation whose input is the output of another source's is called after wait() for that one, or is given its
//      Pending (`after`), which orders the two and leaves what computes alone.
//
// Collectives of hosts are over when their calls return: nothing is pending, and hold() keeps nothing.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace zeropp {

/// The part of a source that a Pending needs. Operations have numbers from 1 on: a source with one operation ignores
/// them. Errors of an operation are thrown to who asks for it, on the thread that asks.
class PendingSource {
 public:
  virtual ~PendingSource() = default;
  /// Work of the device from now on runs after operation `number`. The host as a device waits; the host of a GPU
  /// does not, unless the source says so.
  virtual void join(std::uint64_t number) = 0;
  /// The same for what is enqueued from now on on `stream`, a cudaStream_t.
  virtual void join_stream(std::uint64_t number, void* stream) { static_cast<void>(stream), join_host(number); }
  /// The host waits until the operation is over.
  virtual void join_host(std::uint64_t number) { join(number); }
  /// Whether it is over. Does not wait.
  virtual bool done(std::uint64_t number) = 0;
  /// Whether join_host() and join_stream() may be called by any thread: then a lane can wait on its own thread.
  virtual bool any_thread() const { return false; }
};

class Pending {
 public:
  Pending() = default;  ///< nothing
  explicit Pending(std::shared_ptr<PendingSource> source, std::uint64_t number = 1)
      : source_(number ? std::move(source) : nullptr), number_(number) {}
  Pending(Pending&& other) noexcept
      : source_(std::move(other.source_)), number_(other.number_), held_(std::move(other.held_)) {}
  Pending& operator=(Pending&& other) {
    wait();
    source_ = std::move(other.source_);
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

  bool under_way() const { return source_ != nullptr; }
  /// Whether the operation is over: wait() and finish() have nothing left to wait for.
  bool done() const { return !source_ || source_->done(number_); }
  bool any_thread() const { return !source_ || source_->any_thread(); }

  /// Work enqueued from now on runs after the operation; blocks that were held are let go. The host of a GPU does not
  /// wait, unless the source says so.
  void wait() {
    if (const auto source = std::exchange(source_, nullptr)) source->join(number_);
    held_.clear();
  }
  /// The host waits until the operation is over.
  void finish() {
    if (const auto source = std::exchange(source_, nullptr)) source->join_host(number_);
    held_.clear();
  }
  /// For sources, whose next operation runs after this one: what is enqueued on `stream` from now on does; null: what
  /// computes. Blocks stay held, see let_go().
  void wait_on(void* stream) {
    if (const auto source = std::exchange(source_, nullptr))
      stream ? source->join_stream(number_, stream) : source->join(number_);
  }

  /// Keeps a block until wait(); lets go at once where nothing is under way.
  void hold(std::shared_ptr<const void> block) {
    if (under_way()) held_.push_back(std::move(block));
  }
  /// The blocks that were held: whoever runs after this operation holds them from now on.
  [[nodiscard]] std::vector<std::shared_ptr<const void>> let_go() { return std::exchange(held_, {}); }

 private:
  std::shared_ptr<PendingSource> source_;
  std::uint64_t number_ = 0;
  std::vector<std::shared_ptr<const void>> held_;
};

namespace detail {

class BothPending final : public PendingSource {
 public:
  BothPending(Pending& a, Pending& b) : a_(std::move(a)), b_(std::move(b)) {}
  void join(std::uint64_t) override {
    each([](Pending& one) { one.wait(); });
  }
  void join_stream(std::uint64_t, void* stream) override {
    each([stream](Pending& one) { one.wait_on(stream); });
  }
  void join_host(std::uint64_t) override {
    each([](Pending& one) { one.finish(); });
  }
  bool done(std::uint64_t) override { return a_.done() && b_.done(); }
  bool any_thread() const override { return a_.any_thread() && b_.any_thread(); }

 private:
  /// The second one is waited for even if the first one throws: its memory is in use until then.
  template <class Wait>
  void each(const Wait& wait) {
    std::exception_ptr error;
    for (auto* one : {&a_, &b_}) try {
        wait(*one);
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    if (error) std::rethrow_exception(error);
  }

  Pending a_, b_;
};

}  // namespace detail

/// Two operations as one, over when both are; an error of either is its error.
[[nodiscard]] inline Pending both(Pending a, Pending b) {
  if (!a.under_way()) return b;
  if (!b.under_way()) return a;
  auto held_by_a = a.let_go(), held_by_b = b.let_go();  // by the pair: a lane that waits for it may not free them
  Pending pair(std::make_shared<detail::BothPending>(a, b));
  for (auto* all : {&held_by_a, &held_by_b})
    for (auto& block : *all) pair.hold(std::move(block));
  return pair;
}

}  // namespace zeropp
