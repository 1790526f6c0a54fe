// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process.
//
//   run_ranks(4, {.limit = std::chrono::seconds(5)}, [](Comm comm) { ... comm.all_reduce(data); ... });
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/report.hpp>
#include <zeropp/comm/threads/backend.hpp>
#include <zeropp/comm/threads/world.hpp>

namespace zeropp {

struct ThreadOptions {
  /// How long a rank waits for the others in one operation before it names them and ends all.
  std::chrono::nanoseconds limit = std::chrono::seconds(300);
};

namespace detail {

/// Rethrows what rank `rank` threw, of the same kind, with the rank in its sentence.
[[noreturn]] inline void rethrow_from_rank(int rank, const std::exception_ptr& error) {
  const auto named = [&](const std::exception& e) { return with_rank(rank, e.what()); };
  try {
    std::rethrow_exception(error);
  } catch (const ConfigError& e) {
    throw ConfigError(named(e), e.where());
  } catch (const MemoryError& e) {
    throw MemoryError(named(e), e.where());
  } catch (const DataError& e) {
    throw DataError(named(e), e.where());
  } catch (const CommError& e) {
    throw CommError(named(e), e.where());
  } catch (const Error& e) {
    throw Error(named(e), e.where(), e.exit_code());
  } catch (const std::bad_alloc&) {
    throw MemoryError(text("rank ", rank, ": out of host memory"));
  } catch (const std::exception& e) {
    throw Error(named(e));
  }  // what is no std::exception passes as it is
}

}  // namespace detail

/// The owner of a group of thread ranks: `comm(r)` is given to the thread that is rank r, once. For threads of your
/// own; run_ranks starts them for you. All ranks must come to every operation within `limit`, or all end with a
/// CommError.
class ThreadGroup {
 public:
  explicit ThreadGroup(int ranks, ThreadOptions options = {}) {
    if (ranks < 1) throw ConfigError(text("a group needs at least 1 rank, got ", ranks));
    world_ = std::make_shared<detail::ThreadWorld>(ranks, options.limit);
    std::vector<int> members(static_cast<std::size_t>(ranks));
    for (int r = 0; r < ranks; ++r) members[static_cast<std::size_t>(r)] = r;
    group_ = std::make_shared<detail::ThreadGroupState>(world_, members);
    taken_ = std::vector<std::atomic<bool>>(static_cast<std::size_t>(ranks));
  }

  int size() const { return world_->size(); }

  /// The communicator of rank `rank`. Throws CommError if there is no such rank, or if it was taken before.
  Comm comm(int rank) {
    if (rank < 0 || rank >= size()) throw CommError(text("rank ", rank, " asked of a group of ", size(), " ranks"));
    if (taken_[static_cast<std::size_t>(rank)].exchange(true))
      throw CommError(text("two threads ask to be rank ", rank, " of ", size(), "; give each a number of its own"));
    return size() == 1 ? Comm{} : Comm{std::make_shared<detail::ThreadBackend>(group_, rank)};
  }

  /// Ends all ranks: they throw CommError from what they wait in, or from their next operation.
  void fail(int rank, std::exception_ptr error) {
    std::string sentence = "unknown exception";
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      sentence = e.what();
    } catch (...) {
    }
    world_->fail(rank, error, sentence);
  }

  /// Runs body(comm) in a thread of its own for every rank and joins them; throws the first error of any rank, with its
  /// number. `stuck` is called where a rank has not ended `limit` after that error.
  template <class Body>
  void run(const Body& body, const std::function<void()>& stuck = {}) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) try {
        threads.emplace_back([&, r] {
          try {
            body(comm(r));
          } catch (...) {
            fail(r, std::current_exception());
          }
          world_->end(r);
        });
      } catch (const std::system_error&) {
        const Error error(text("the system gives no thread for rank ", r, " of ", size(), "; use fewer ranks"));
        world_->fail(-1, std::make_exception_ptr(error), error.what());
        for (; r < size(); ++r) world_->end(r);
      }
    if (!world_->wait_for_end() && stuck) stuck();
    for (auto& thread : threads) thread.join();
    if (world_->failed()) rethrow_first_error();
  }

  /// Throws what ended the group, with the rank in its sentence. Only after a rank has failed.
  [[noreturn]] void rethrow_first_error() const {
    const auto [rank, error] = world_->first_error();
    detail::rethrow_from_rank(rank, error);
  }

 private:
  std::shared_ptr<detail::ThreadWorld> world_;
  std::shared_ptr<detail::ThreadGroupState> group_;
  std::vector<std::atomic<bool>> taken_;
};

/// Runs body(comm) on `ranks` ranks, each a thread, and returns when all have ended. If one throws, the others end too,
/// and its error is thrown here, with its rank in the sentence. One rank runs on the calling thread.
template <class Body>
void run_ranks(int ranks, const ThreadOptions& options, const Body& body) {
  ThreadGroup group{ranks, options};
  if (ranks == 1) return static_cast<void>(body(group.comm(0)));
  group.run(body);
}
template <class Body>
void run_ranks(int ranks, const Body& body) {
  run_ranks(ranks, ThreadOptions{}, body);
}

}  // namespace zeropp
