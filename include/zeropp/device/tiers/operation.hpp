// SPDX-License-Identifier: Apache-2.0
// A copy between a device and a tier that may still be under way: a source of Pendings. It has parts; each ends on the
// device's side first (its memory may be used again) and then on the tier's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <zeropp/device/pending.hpp>
#include <zeropp/device/tiers/copies.hpp>

namespace zeropp::detail {

/// The operations before a copy: the one that the caller names, whose error is its own; and copies of the same tier,
/// whatever comes of them (a failed store has told the tier).
struct Before {
  Pending after;
  std::vector<std::shared_ptr<PendingSource>> copies;

  void finish() {
    for (auto& copy : std::exchange(copies, {})) try {
        copy->join_host(1);
      } catch (...) {
      }
    after.finish();
  }
  /// The same for what is enqueued on `stream` from now on.
  void wait_on(void* stream) {
    for (auto& copy : std::exchange(copies, {})) try {
        copy->join_stream(1, stream);
      } catch (...) {
      }
    after.wait_on(stream);
  }
};

/// wait() finds the device's side over. So after wait() for a store its device memory is free, while the tier may
/// still be writing: an error of that is thrown by finish(), and by whoever uses the tier next. The host waits in
/// wait() until all copies of the device are over (on the host), or enqueued (on a GPU).
template <class D>
class TierOperation final : public PendingSource {
 public:
  using Event = typename Copies<D>::Event;

  TierOperation(const Copies<D>& copies, std::weak_ptr<const void> device, std::int64_t parts, Before before)
      : stream_(copies.stream()),
        computing_(copies.computing()),
        device_(std::move(device)),
        before_(std::move(before)),
        uncopied_(parts),
        unmoved_(parts) {
    ready_.record(computing_);
  }

  void join(std::uint64_t) override {
    const auto error = wait_for(uncopied_);
    if (!device_.expired()) ended_.hold(computing_);
    if (error) std::rethrow_exception(error);
  }
  void join_stream(std::uint64_t, void* stream) override {
    const auto error = wait_for(uncopied_);
    ended_.hold(stream);
    if (error) std::rethrow_exception(error);
  }
  void join_host(std::uint64_t) override {
    const auto error = wait_for(unmoved_);
    ended_.wait();
    if (error) std::rethrow_exception(error);
  }
  bool done(std::uint64_t) override {
    const std::lock_guard lock(mutex_);
    return unmoved_ == 0 && ended_.done();
  }
  bool any_thread() const override { return true; }

  /// Work enqueued on the copies' stream runs after what was enqueued for computing when the copy was called.
  void hold_stream() const { ready_.hold(stream_); }
  /// Lanes call it before each part; the first one waits for what the copy runs after. False where it has failed.
  bool begin() {
    const std::lock_guard begins(begin_mutex_);
    try {
      std::exchange(before_, {}).finish();
    } catch (...) {
      fail(std::current_exception());
    }
    const std::lock_guard lock(mutex_);
    return !error_;
  }
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
  }
  std::exception_ptr error() {
    const std::lock_guard lock(mutex_);
    return error_;
  }
  /// A part is over on the device's side, or enqueued there.
  void copied() {
    const std::lock_guard lock(mutex_);
    if (--uncopied_ > 0) return;
    try {
      ended_.record(stream_);
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    changed_.notify_all();
  }
  /// And on the tier's side.
  void moved() {
    const std::lock_guard lock(mutex_);
    if (--unmoved_ == 0) changed_.notify_all();
  }

 private:
  /// The error, if there is one: thrown after the event is waited for, since other parts may be under way on a GPU.
  std::exception_ptr wait_for(const std::int64_t& parts) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&parts] { return parts == 0; });
    return error_;
  }

  void *stream_, *computing_;
  std::weak_ptr<const void> device_;
  Event ready_, ended_;
  std::mutex begin_mutex_, mutex_;
  std::condition_variable changed_;
  Before before_;
  std::int64_t uncopied_, unmoved_;
  std::exception_ptr error_;
};

}  // namespace zeropp::detail
