// SPDX-License-Identifier: Apache-2.0
// Messages under way between MPI ranks: nonblocking, polled, with a limit on waiting that names the ranks that did not
// answer. Every return code is checked.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <zeropp/comm/call.hpp>

namespace zeropp::detail {

/// A failure that another rank knows as well, and reports: this one only ends.
struct ReportedElsewhere : CommError {
  using CommError::CommError;
};

/// Throws CommError with MPI's own words where a call failed.
inline void mpi_check(int code, const std::string& what, Where where = Where::here()) {
  if (code == MPI_SUCCESS) return;
  char words[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, words, &length);
  throw CommError(text(what, ": MPI says: ", std::string_view(words, static_cast<std::size_t>(length))), where);
}

/// Between MPI_Init and MPI_Finalize. Destructors ask before they touch MPI.
inline bool mpi_runs() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started && !ended;
}

/// The state that the groups of one process share: the options, and the failure that ends them all.
struct MpiState {
  bool checked;
  std::chrono::nanoseconds limit;
  std::string failure = {};
};

/// The nonblocking sends and receives of one step, in one communicator.
class MpiRequests {
 public:
  /// Larger messages go in pieces: MPI counts in int.
  static constexpr std::size_t largest = std::size_t{1} << 28;

  /// `world_ranks` names the ranks of `comm`; `taking_part` those that would notice a failure of this step.
  MpiRequests(MPI_Comm comm, const std::vector<int>& world_ranks, std::vector<int> taking_part)
      : comm_(comm), world_ranks_(world_ranks), taking_part_(std::move(taking_part)) {}
  MpiRequests(const MpiRequests&) = delete;
  MpiRequests& operator=(const MpiRequests&) = delete;
  /// After a failure: receives are withdrawn; MPI may still read what is being sent until the process ends.
  ~MpiRequests() {
    if (empty() || !mpi_runs()) return;
    for (std::size_t i = 0; i < handles_.size(); ++i) {
      if (handles_[i] == MPI_REQUEST_NULL) continue;
      if (about_[i].receive) MPI_Cancel(&handles_[i]);
      MPI_Request_free(&handles_[i]);
    }
  }

  void send(const void* data, std::size_t bytes, int to, int tag) {
    for (std::size_t at = 0; at < bytes; at += largest) {
      const int count = static_cast<int>(std::min(largest, bytes - at));
      MPI_Request handle;
      mpi_check(MPI_Isend(static_cast<const std::byte*>(data) + at, count, MPI_BYTE, to, tag, comm_, &handle),
                text("send to rank ", world(to)));
      add(handle, {to, count, false});
    }
  }
  void receive(void* data, std::size_t bytes, int from, int tag) {
    for (std::size_t at = 0; at < bytes; at += largest) {
      const int count = static_cast<int>(std::min(largest, bytes - at));
      MPI_Request handle;
      mpi_check(MPI_Irecv(static_cast<std::byte*>(data) + at, count, MPI_BYTE, from, tag, comm_, &handle),
                text("receive from rank ", world(from)));
      add(handle, {from, count, true});
    }
  }
  /// A request of a collective of MPI's own: which rank it waits for is not known.
  void add_collective(MPI_Request handle) { add(handle, {-1, 0, false}); }

  bool empty() const { return left_ == 0; }

  /// Completes what can be completed now; true if anything was. Throws where a message has another size than expected.
  bool progress(const std::string& call) {
    if (empty()) return false;
    std::vector<int> indices(handles_.size());
    std::vector<MPI_Status> statuses(handles_.size());
    int completed = 0;
    const int code =
        MPI_Testsome(static_cast<int>(handles_.size()), handles_.data(), &completed, indices.data(), statuses.data());
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) mpi_check(code, call);
    for (int i = 0; i < completed; ++i) {
      const auto& done = about_[static_cast<std::size_t>(indices[static_cast<std::size_t>(i)])];
      --left_;
      if (code == MPI_ERR_IN_STATUS)
        mpi_check(statuses[static_cast<std::size_t>(i)].MPI_ERROR,
                  done.peer < 0 ? call : text(call, ", with rank ", world(done.peer)));
      if (!done.receive) continue;
      int count = 0;
      mpi_check(MPI_Get_count(&statuses[static_cast<std::size_t>(i)], MPI_BYTE, &count), call);
      if (count != done.bytes)
        throw CommError(text(call, ": rank ", world(done.peer), " sent ", count, " bytes where ", done.bytes,
                             " were expected; all ranks of a group must make the same calls in the same order"));
    }
    if (empty()) handles_.clear(), about_.clear();
    return completed > 0;
  }

  /// World ranks that something is still expected from, or that have not taken what was sent.
  std::vector<int> waits_for() const {
    std::vector<int> ranks;
    for (std::size_t i = 0; i < handles_.size(); ++i)
      if (handles_[i] != MPI_REQUEST_NULL && about_[i].peer >= 0) ranks.push_back(world(about_[i].peer));
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    return ranks;
  }

  /// Returns when all is done. Throws CommError where that takes longer than the limit.
  void wait(const MpiState& state, int rank, const std::string& call) {
    auto start = std::chrono::steady_clock::now();
    for (int idle = 0; !empty(); ++idle) {
      if (progress(call)) {
        idle = 0;
        start = std::chrono::steady_clock::now();  // slow is not hung: the limit is on silence
        continue;
      }
      // Awake while an answer is likely soon; then give the core away, for ranks that share it.
      if (idle < 20) continue;
      idle < 2000 ? std::this_thread::yield() : std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (std::chrono::steady_clock::now() - start > state.limit) give_up(state, rank, call);
    }
  }

 private:
  struct About {
    int peer, bytes;
    bool receive;
  };
  void add(MPI_Request handle, About about) {
    handles_.push_back(handle);
    about_.push_back(about);
    ++left_;
  }
  int world(int rank) const { return world_ranks_[static_cast<std::size_t>(rank)]; }

  [[noreturn]] void give_up(const MpiState& state, int rank, const std::string& call) const {
    const auto late = waits_for();
    if (late.empty())
      throw CommError(text("rank ", rank, " waited ", seconds_text(state.limit), " in ", call,
                           " for other ranks; which of them did not come is known in checked builds"));
    const auto sentence = text("rank ", rank, " waited ", seconds_text(state.limit), " in ", call, " for ",
                               ranks_text(late), ", which did not answer");
    for (int first : taking_part_)  // the first of those that came speaks for all
      if (std::find(late.begin(), late.end(), first) == late.end()) {
        if (first != rank) throw ReportedElsewhere(sentence);
        break;
      }
    throw CommError(sentence);
  }

  MPI_Comm comm_;
  std::vector<int> world_ranks_, taking_part_;
  std::vector<MPI_Request> handles_;
  std::vector<About> about_;
  std::size_t left_ = 0;
};

}  // namespace zeropp::detail
