// SPDX-License-Identifier: Apache-2.0
// A lane of the host: threads that run copies beside what computes. Jobs begin in the order of their calls; the parts
// of one job, and with several threads those of the next ones, run at the same time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp::detail {

class Lane {
 public:
  /// part(thread, index); must not throw.
  using Part = std::function<void(int thread, std::int64_t index)>;

  explicit Lane(int threads) {
    try {
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (const std::exception& error) {
      end();
      throw Error(text("a lane of copies gets ", threads_.size(), " of ", threads, " threads: ", error.what(),
                       "; raise the limit (ulimit -u), or have fewer requests under way"));
    }
  }
  /// Ends when all jobs have.
  ~Lane() { end(); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// Calls part(thread, index) for each index in [0, parts), in this order. Returns at once.
  void post(std::int64_t parts, Part part) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back({std::make_shared<const Part>(std::move(part)), parts});
    }
    parts == 1 ? wake_.notify_one() : wake_.notify_all();
  }

 private:
  struct Job {
    std::shared_ptr<const Part> part;  ///< gone with the last thread that runs it, and so is what it holds
    std::int64_t parts, next = 0;
  };

  void end() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  void serve(int thread) {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto part = jobs_.front().part;
      const auto index = jobs_.front().next++;
      if (index + 1 == jobs_.front().parts) jobs_.pop_front();
      lock.unlock();
      (*part)(thread, index);
      part.reset();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace zeropp::detail
