// SPDX-License-Identifier: Apache-2.0
// The compute threads of one rank. Work is cut by a grain that the kernel chooses, never by the number of threads, so
// the bits of a result do not depend on how many there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

class Workers {
 public:
  explicit Workers(int threads = 1) {
    if (threads < 1) throw ConfigError(text("a rank needs at least 1 compute thread, got ", threads));
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { serve(); });
  }
  ~Workers() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return 1 + static_cast<int>(helpers_.size()); }

  /// Calls f(begin, end) for [0, grain), [grain, 2·grain), … up to count, on all threads; returns when all are done.
  /// The first exception is rethrown. Not to be nested.
  template <class F>
  void for_each(std::int64_t count, std::int64_t grain, F&& f) {
    grain = std::max<std::int64_t>(grain, 1);
    if (helpers_.empty() || count <= grain) {
      for (std::int64_t begin = 0; begin < count; begin += grain) f(begin, std::min(begin + grain, count));
      return;
    }
    {
      std::lock_guard lock(mutex_);
      job_ = {[](void* body, std::int64_t begin, std::int64_t end) {
                (*static_cast<std::remove_reference_t<F>*>(body))(begin, end);
              },
              const_cast<void*>(static_cast<const void*>(&f)), count, grain};
      next_.store(0, std::memory_order_relaxed);
      busy_ = static_cast<int>(helpers_.size());
      error_ = nullptr;
      ++generation_;
    }
    wake_.notify_all();
    take_chunks();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Job {
    void (*call)(void*, std::int64_t, std::int64_t) = nullptr;
    void* body = nullptr;
    std::int64_t count = 0, grain = 1;
  };

  void take_chunks() {
    try {
      for (;;) {
        const auto begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
        if (begin >= job_.count) return;
        job_.call(job_.body, begin, std::min(begin + job_.grain, job_.count));
      }
    } catch (...) {
      next_.store(job_.count, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void serve() {
    std::uint64_t seen = 0;
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      lock.unlock();
      take_chunks();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job job_;
  std::atomic<std::int64_t> next_{0};
  int busy_ = 0;
  bool stop_ = false;
  std::uint64_t generation_ = 0;
  std::exception_ptr error_;
};

}  // namespace zeropp
