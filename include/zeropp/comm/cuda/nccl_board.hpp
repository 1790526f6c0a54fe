// SPDX-License-Identifier: Apache-2.0
// Where the ranks of a group note which collectives they have called. NCCL compares nothing: ranks that differ hang or
// sum wrongly. Threads of one process share a board, so the second to come finds the difference before its GPU does, at
// the price of a lock; between processes a board knows its own rank only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/call.hpp>
#include <zeropp/comm/comm.hpp>

namespace zeropp::detail {

class NcclBoard {
 public:
  struct Entry {
    Operation op;
    std::vector<std::int64_t> counts;                     ///< of the pieces
    std::vector<std::int64_t> sends = {}, receives = {};  ///< all_to_all: bytes by rank
  };
  struct Difference {
    int rank;
    Entry entry;  ///< what it called
  };

  explicit NcclBoard(int ranks) : seats_(static_cast<std::size_t>(ranks)) {}

  /// Notes the next collective of `rank`; says who has called something else in this place.
  std::optional<Difference> note(int rank, const Entry& mine) {
    const std::lock_guard lock(mutex_);
    Seat& seat = seats_[static_cast<std::size_t>(rank)];
    const auto place = seat.come++;
    seat.last[place % seat.last.size()] = mine;
    for (int r = 0; r < static_cast<int>(seats_.size()); ++r) {
      const Seat& other = seats_[static_cast<std::size_t>(r)];
      if (r == rank || other.come <= place || place + other.last.size() < other.come) continue;
      const Entry& theirs = other.last[place % other.last.size()];
      if (!same(mine, rank, theirs, r)) return Difference{r, theirs};
    }
    return {};
  }
  /// Collectives that a rank has called.
  std::uint64_t come(int rank) const {
    const std::lock_guard lock(mutex_);
    return seats_[static_cast<std::size_t>(rank)].come;
  }
  /// Ranks that have called fewer than `count`.
  std::vector<int> behind(std::uint64_t count) const {
    const std::lock_guard lock(mutex_);
    std::vector<int> ranks;
    for (std::size_t r = 0; r < seats_.size(); ++r)
      if (seats_[r].come < count) ranks.push_back(static_cast<int>(r));
    return ranks;
  }

  /// Ends the group for all ranks of this process; the first cause counts. An empty sentence: the rank ended because of
  /// an error that somebody else reports.
  void fail(const std::string& sentence) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = sentence;
  }
  std::optional<std::string> failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  struct Seat {
    std::uint64_t come = 0;
    std::array<Entry, 128> last;
  };

  static bool same(const Entry& a, int rank_a, const Entry& b, int rank_b) {
    if (!(a.op == b.op) || a.counts != b.counts) return false;
    if (a.op.kind != Collective::all_to_all) return true;
    const auto at = [](const std::vector<std::int64_t>& list, int rank) {
      return list[static_cast<std::size_t>(rank)];
    };
    return at(a.sends, rank_b) == at(b.receives, rank_a) && at(b.sends, rank_a) == at(a.receives, rank_b);
  }

  mutable std::mutex mutex_;
  std::vector<Seat> seats_;
  std::optional<std::string> failure_;
};

}  // namespace zeropp::detail
