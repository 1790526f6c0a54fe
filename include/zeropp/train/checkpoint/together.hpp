// SPDX-License-Identifier: Apache-2.0
// Work of each rank on its own that succeeds on all ranks or fails on all, with the sentence of the first that failed:
// no rank goes on, or waits, after another could not write its file.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

struct Failure {
  int rank;
  ExitCode code;
  std::string sentence;

  [[noreturn]] void raise(const Comm& comm) const {
    const auto all = comm.size() > 1 ? text("rank ", rank, ": ", sentence) : sentence;
    switch (code) {
      case ExitCode::data: throw DataError(all);
      case ExitCode::usage: throw ConfigError(all);
      case ExitCode::memory: throw MemoryError(all);
      default: throw Error(all);
    }
  }
};

/// Remembers the first failure of this rank; work after it is left out, so that the rank still takes part in the
/// collectives between the pieces of work. The work itself communicates nothing.
class Attempt {
 public:
  template <class Work>
  void operator()(Work&& work) {
    if (failure_) return;
    try {
      work();
    } catch (const Error& error) {
      failure_ = {0, error.exit_code(), error.what()};
    } catch (const std::exception& error) {
      failure_ = {0, ExitCode::failure, error.what()};
    }
  }

  /// The failure of the lowest rank that has one, the same on every rank. A collective.
  std::optional<Failure> over(const Comm& comm) const {
    const std::array<std::int64_t, 2> mine{failure_ ? static_cast<std::int64_t>(failure_->code) : 0,
                                           failure_ ? static_cast<std::int64_t>(failure_->sentence.size()) : 0};
    std::vector<std::int64_t> all(2 * static_cast<std::size_t>(comm.size()));
    comm.host().all_gather(std::span<const std::int64_t>{mine}, std::span{all});
    for (int rank = 0; rank < comm.size(); ++rank) {
      const auto at = 2 * static_cast<std::size_t>(rank);
      if (!all[at]) continue;
      std::string sentence = rank == comm.rank() ? failure_->sentence : std::string();
      sentence.resize(static_cast<std::size_t>(all[at + 1]));
      comm.host().broadcast(std::as_writable_bytes(std::span{sentence}), rank);
      return Failure{rank, static_cast<ExitCode>(all[at]), std::move(sentence)};
    }
    return {};
  }
  /// Throws on every rank if one failed. A collective.
  void agree(const Comm& comm) const {
    if (auto failure = over(comm)) failure->raise(comm);
  }

 private:
  std::optional<Failure> failure_;
};

/// One piece of work. A collective.
template <class Work>
void together(const Comm& comm, Work&& work) {
  Attempt attempt;
  attempt(work);
  attempt.agree(comm);
}

/// Rank 0's text on every rank.
inline std::string broadcast_text(const Comm& comm, std::string mine) {
  std::int64_t length = static_cast<std::int64_t>(mine.size());
  comm.host().broadcast(std::span<std::int64_t>{&length, 1}, 0);
  mine.resize(static_cast<std::size_t>(length));
  comm.host().broadcast(std::as_writable_bytes(std::span{mine}), 0);
  return mine;
}

/// The texts of all ranks on rank 0, elsewhere empty ones.
inline std::vector<std::string> gather_texts(const Comm& comm, const std::string& mine) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto length = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> send(ranks), receive(ranks), lengths(ranks);
  comm.host().all_gather(std::span<const std::int64_t>{&length, 1}, std::span{lengths});
  send[0] = length;
  if (comm.rank() == 0) receive = lengths;
  std::int64_t total = 0;
  for (auto count : receive) total += count;
  std::string all(static_cast<std::size_t>(total), '\0');
  comm.host().all_to_all(std::as_bytes(std::span{mine}), send, std::as_writable_bytes(std::span{all}), receive);
  std::vector<std::string> texts;
  std::size_t at = 0;
  for (auto count : receive) {
    texts.push_back(all.substr(at, static_cast<std::size_t>(count)));
    at += static_cast<std::size_t>(count);
  }
  return texts;
}

}  // namespace zeropp
