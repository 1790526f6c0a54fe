// SPDX-License-Identifier: Apache-2.0
// The state that the thread ranks of one program share: the first failure, where each rank sleeps, and the rendezvous
// at which the ranks of a group meet. A failure anywhere ends every wait of every group.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <zeropp/comm/call.hpp>

namespace zeropp::detail {

class ThreadGroupState;

/// A call as one rank makes it, in the numbers of the world: what it waits in, for the sentences.
struct Call {
  Operation op;
  int rank;  ///< who calls
  int peer;  ///< whom op.root means
};
inline std::string call_text(const Call& call) { return call_text(call.op, call.peer); }

class ThreadWorld {
 public:
  ThreadWorld(int ranks, std::chrono::nanoseconds limit)
      : limit_(checked_limit(limit)),
        seats_(static_cast<std::size_t>(ranks)),
        joined_(static_cast<std::size_t>(ranks)) {}

  int size() const { return static_cast<int>(seats_.size()); }
  std::chrono::nanoseconds limit() const { return limit_; }
  bool failed() const { return failed_.load(); }
  bool ended(int rank) const { return seat(rank).ended.load(); }

  /// Records the first cause (later ones are its consequences) and ends all waits. `rank` is -1 where the sentence
  /// names the ranks itself.
  void fail(int rank, std::exception_ptr error, const std::string& sentence) {
    {
      std::lock_guard lock(mutex_);
      if (failed_.load()) return;
      error_ = std::move(error);
      failed_rank_ = rank;
      cause_ = rank < 0 ? sentence : text("rank ", rank, " failed: ", sentence);
      failed_.store(true);
    }
    wake_all();
  }
  [[noreturn]] void refuse(const std::string& sentence, Where where = Where::here()) {
    CommError error(sentence, where);
    fail(-1, std::make_exception_ptr(error), sentence);
    throw error;
  }
  /// For a rank that has to end because of another.
  [[noreturn]] void follow(const Call& call) const {
    throw CommError(text("rank ", call.rank, " in ", call_text(call), ": ended because ", cause()));
  }
  std::string cause() const {
    std::lock_guard lock(mutex_);
    return cause_;
  }
  std::pair<int, std::exception_ptr> first_error() const {
    std::lock_guard lock(mutex_);
    return {failed_rank_, error_};
  }

  /// The body of a rank has returned: nobody needs to wait for it any more.
  void end(int rank) {
    seat(rank).ended.store(true);
    wake_all();
    std::lock_guard lock(mutex_);
    ++ends_;
    ended_.notify_all();
  }
  /// Returns when all ranks have ended; false if one has not, `limit` after a failure.
  bool wait_for_end() {
    std::unique_lock lock(mutex_);
    const auto all = [&] { return ends_ == size(); };
    ended_.wait(lock, [&] { return all() || failed_.load(); });
    return all() || ended_.wait_for(lock, limit_, all);
  }

  /// Waits awake for a moment. It gives the core away in between: the rank that it waits for may need this very one,
  /// also where there are as many cores as ranks (2 ranks, all_reduce of 64 floats: 320 µs without the yield, 9 with).
  template <class Ready>
  static bool spin(const Ready& ready) {
    for (int i = 0; i < 200; ++i) {
      if (ready()) return true;
      if (i % 10 == 0) std::this_thread::yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    return ready();
  }
  /// Sleeps until ready() after a wake(); false when that took longer than the limit, if there is one.
  template <class Ready>
  bool sleep(const Call& call, const Ready& ready, bool limited) {
    Seat& seat = this->seat(call.rank);
    const auto start = std::chrono::steady_clock::now();
    // The sleeper counts itself, then looks; a waker changes what is looked at, then counts sleepers. One sees the
    // other.
    seat.sleepers.fetch_add(1);
    std::unique_lock lock(seat.mutex);
    seat.waits_in = call;
    bool done = ready();
    while (!done) {
      if (limited) {
        const auto left = limit_ - (std::chrono::steady_clock::now() - start);
        if (left <= std::chrono::nanoseconds::zero()) break;
        seat.wake.wait_for(lock, left);
      } else {
        seat.wake.wait(lock);
      }
      done = ready();
    }
    if (done) seat.waits_in.reset();  // two that give up at the same moment still name each other
    seat.sleepers.fetch_sub(1);
    return done;
  }
  void wake(int rank) {
    Seat& seat = this->seat(rank);
    if (seat.sleepers.load() == 0) return;
    { std::lock_guard lock(seat.mutex); }
    seat.wake.notify_all();
  }
  void wake_all() {
    for (int rank = 0; rank < size(); ++rank) wake(rank);
  }
  std::optional<Call> waits_in(int rank) {
    std::lock_guard lock(seat(rank).mutex);
    return seat(rank).waits_in;
  }

  /// The group that `members` form together; each call of the same rank with the same members is another group.
  template <class Make>
  std::shared_ptr<ThreadGroupState> join(int rank, const std::vector<int>& members, const Make& make) {
    std::lock_guard lock(mutex_);
    const auto time = joined_[static_cast<std::size_t>(rank)][members]++;
    Forming& forming = forming_[{members, time}];
    auto group = forming.group.lock();
    if (!group) forming.group = group = make();
    if (++forming.joined == static_cast<int>(members.size())) forming_.erase({members, time});
    return group;
  }

 private:
  /// Where the threads of one rank sleep: a wake reaches that rank alone.
  struct alignas(64) Seat {
    std::mutex mutex;
    std::condition_variable wake;
    std::optional<Call> waits_in;
    std::atomic<int> sleepers{0};
    std::atomic<bool> ended{false};
  };
  struct Forming {
    std::weak_ptr<ThreadGroupState> group;  // weak: the groups own the world
    int joined = 0;
  };
  Seat& seat(int rank) { return seats_[static_cast<std::size_t>(rank)]; }
  const Seat& seat(int rank) const { return seats_[static_cast<std::size_t>(rank)]; }

  const std::chrono::nanoseconds limit_;
  std::vector<Seat> seats_;
  std::atomic<bool> failed_{false};

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  int ends_ = 0;
  int failed_rank_ = -1;
  std::exception_ptr error_;
  std::string cause_;
  std::vector<std::map<std::vector<int>, std::uint64_t>> joined_;
  std::map<std::pair<std::vector<int>, std::uint64_t>, Forming> forming_;
};

/// Where the ranks of a group meet, again and again. It can be closed, by a rank that gives up, only while it is
/// incomplete, and then for good: so either all ranks of a group pass a meeting or none does, and nobody reads the
/// memory of a rank that has gone.
class Rendezvous {
 public:
  Rendezvous(std::shared_ptr<ThreadWorld> world, std::vector<int> members)
      : world_(std::move(world)), members_(std::move(members)), tickets_(members_.size()) {}

  int size() const { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const { return members_; }
  int world_rank(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  ThreadWorld& world() const { return *world_; }
  const std::shared_ptr<ThreadWorld>& shared_world() const { return world_; }

  /// Returns when all have entered. Throws CommError where a rank failed, has ended, or does not come in time.
  void enter(int rank, const Call& call) {
    const auto target = arrive(rank, call);
    if (world_->spin([&] { return complete(target); })) return;
    const auto over = [&] { return complete(target) || closed() || world_->failed() || !gone(target).empty(); };
    world_->sleep(call, over, true);
    if (!complete(target) && close(target)) give_up(call, target);
  }
  /// Returns when all have come this far. Nobody can be missing: all have entered, and between is no wait.
  void leave(int rank, const Call& call) {
    const auto target = arrive(rank, call);
    const auto over = [&] { return complete(target); };
    if (!world_->spin(over)) world_->sleep(call, over, false);
  }

 private:
  static constexpr std::uint64_t closed_bit = std::uint64_t{1} << 63;

  std::uint64_t arrive(int rank, const Call& call) {
    auto& ticket = tickets_[static_cast<std::size_t>(rank)].arrivals;
    const auto meeting = ticket.load() + 1;
    // Between enter and leave nobody may go away, so a failure elsewhere is looked at only on entering.
    if (meeting % 2 == 1 && world_->failed()) world_->follow(call);
    ticket.store(meeting);
    auto count = arrivals_.load();
    do {
      if (count & closed_bit) give_up(call, meeting * members_.size());
    } while (!arrivals_.compare_exchange_weak(count, count + 1));
    const auto target = meeting * members_.size();
    if (count + 1 == target)
      for (int member : members_)
        if (member != call.rank) world_->wake(member);
    return target;
  }
  bool complete(std::uint64_t target) const { return (arrivals_.load() & ~closed_bit) >= target; }
  bool closed() const { return (arrivals_.load() & closed_bit) != 0; }
  /// False where the meeting has become complete in the last moment.
  bool close(std::uint64_t target) {
    auto count = arrivals_.load();
    do {
      if ((count & ~closed_bit) >= target) return false;
    } while (!(count & closed_bit) && !arrivals_.compare_exchange_weak(count, count | closed_bit));
    return true;
  }
  std::vector<int> missing(std::uint64_t target) const {
    std::vector<int> ranks;
    for (std::size_t r = 0; r < members_.size(); ++r)
      if (tickets_[r].arrivals.load() * members_.size() < target) ranks.push_back(members_[r]);
    return ranks;
  }
  std::vector<int> gone(std::uint64_t target) const {
    auto ranks = missing(target);
    std::erase_if(ranks, [&](int rank) { return !world_->ended(rank); });
    return ranks;
  }
  [[noreturn]] void give_up(const Call& call, std::uint64_t target) {
    if (world_->failed()) world_->follow(call);
    const auto in_group = size() < world_->size() ? text(" in the group of ", ranks_text(members_)) : std::string{};
    if (const auto ranks = gone(target); !ranks.empty())
      world_->refuse(text("rank ", call.rank, " calls ", call_text(call), in_group, ", but ", ranks_text(ranks),
                          " ended without it"));
    const auto late = missing(target);
    auto sentence = text("rank ", call.rank, " waited ", seconds_text(world_->limit()), " in ", call_text(call),
                         in_group, " for ", ranks_text(late), ", which did not come");
    for (int rank : late)
      if (const auto other = world_->waits_in(rank)) sentence += text("; rank ", rank, " waits in ", call_text(*other));
    world_->refuse(sentence);
  }

  struct alignas(64) Ticket {
    std::atomic<std::uint64_t> arrivals{0};  // meetings that this rank has come to
  };
  std::shared_ptr<ThreadWorld> world_;
  std::vector<int> members_;
  std::vector<Ticket> tickets_;
  alignas(64) std::atomic<std::uint64_t> arrivals_{0};  // of all ranks together, and the closed bit
};

}  // namespace zeropp::detail
