// SPDX-License-Identifier: Apache-2.0
// Ranks of a cluster that is not here. Some of them are *represented*: threads of this process that run the engine on
// the dry device. The others do, at the same moments, what the represented rank of their group does; so collectives
// cost what they cost among all ranks of the group, while only represented ones meet. Nothing is moved; clocks are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/device/clock.hpp>

namespace zeropp {

/// Between two ranks: `bandwidth` bytes a second each way, `latency` seconds a message.
struct Link {
  double bandwidth = 0;
  double latency = 0;
};

/// Consecutive ranks share a node; each rank has a port of its own to the network.
struct Links {
  int ranks_per_node = 8;
  Link node{232e9, 3e-6};    ///< inside a node
  Link network{22e9, 6e-6};  ///< between nodes, a rank
  /// Operations go on beside the computing until the engine waits for them, as a GPU's do (Pending). Without it a rank
  /// waits for each, as on the CPU.
  bool overlap = false;

  const Link& between(int a, int b) const { return a / ranks_per_node == b / ranks_per_node ? node : network; }
};

/// How long collectives of a group take, of `members` (ranks of the cluster, in order). A ring of n ranks sends 1/n of
/// the whole n − 1 times; recursive doubling takes log n messages but crosses the slowest link with all of them
/// (Thakur, Rabenseifner and Gropp, 2005). The faster one is taken.
class CollectiveTimes {
 public:
  CollectiveTimes(const Links& links, const std::vector<int>& members) : n_(static_cast<double>(members.size())) {
    std::map<int, int> on_node;
    for (int member : members) ++on_node[member / links.ranks_per_node];
    const bool crosses = on_node.size() > 1;
    int fewest = static_cast<int>(members.size());
    for (auto [node, count] : on_node) fewest = std::min(fewest, count);
    slowest_ = crosses ? links.network : links.node;
    // Rings through a node leave it by the ports of all their ranks there, as NCCL's do.
    ring_ = crosses ? std::min(links.node.bandwidth, links.network.bandwidth * fewest) : links.node.bandwidth;
  }

  /// All-gather or reduce-scatter of `bytes` in the whole.
  double part(double bytes) const {
    if (n_ <= 1) return 0;
    const double moved = bytes * (n_ - 1) / n_;
    return std::min((n_ - 1) * slowest_.latency + moved / ring_,
                    std::ceil(std::log2(n_)) * slowest_.latency + moved / slowest_.bandwidth);
  }
  /// From one to all: a tree, or for much data a scatter and an all-gather.
  double broadcast(double bytes) const {
    if (n_ <= 1) return 0;
    return std::min(std::ceil(std::log2(n_)) * (slowest_.latency + bytes / slowest_.bandwidth), 2 * part(bytes));
  }
  /// `bytes` to each of the others, summed.
  double all_to_all(double bytes) const {
    return n_ <= 1 ? 0 : (n_ - 1) * slowest_.latency + bytes / slowest_.bandwidth;
  }
  double barrier() const { return n_ <= 1 ? 0 : std::ceil(std::log2(n_)) * slowest_.latency; }

 private:
  double n_;
  Link slowest_{};
  double ring_ = 0;
};

/// The end of a simulated rank in a group. `clock` is its device's.
class SimulatedBackend final : public CommBackend {
 public:
  /// The members in `represented` (indices into members, ascending) are the ranks of `live`.
  SimulatedBackend(const Links& links, SimulatedClock& clock, std::vector<int> members, int rank,
                   std::vector<int> represented, Comm live)
      : links_(links),
        clock_(&clock),
        members_(std::move(members)),
        rank_(rank),
        represented_(std::move(represented)),
        live_(std::move(live)),
        times_(links, members_) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  std::string_view name() const override { return "simulated"; }
  bool buffers_sends() const override { return true; }
  bool moves() const override { return false; }
  bool overlaps() const override { return links_.overlap && size() > 1; }
  std::uint64_t enqueued() const override { return number_; }
  void join(std::uint64_t number) override {
    for (; !under_way_.empty() && joined_ < number; ++joined_, under_way_.pop_front()) {
      clock_->wait_until(under_way_.front().begin);
      clock_->wait_communication(under_way_.front().end);
    }
  }
  bool done(std::uint64_t number) override {
    return number <= joined_ || under_way_[number - joined_ - 1].end <= clock_->now();
  }

  void reduce_scatter(const Operation& op, std::span<const Piece>) override { together(times_.part(bytes_of(op))); }
  void all_gather(const Operation& op, std::span<const Piece>) override { together(times_.part(bytes_of(op))); }
  void broadcast(const Operation& op, std::span<std::byte>) override { together(times_.broadcast(bytes_of(op))); }
  void all_to_all(const Operation&, std::span<const std::byte> in, std::span<const std::int64_t>, std::span<std::byte>,
                  std::span<const std::int64_t>) override {
    together(times_.all_to_all(static_cast<double>(in.size()) * (size() - 1) / size()));
  }
  void barrier(const Operation&) override {
    together(times_.barrier());
    join(number_);
  }

  /// Returns at once; messages to one rank share a link.
  void send(const Operation&, int to, std::span<const std::byte> data) override {
    const auto& link = links_.between(member(rank_), member(to));
    auto& free = link_free_[to];
    free = std::max(free, clock_->now()) + static_cast<double>(data.size()) / link.bandwidth;
    const double arrival = free + link.latency;
    if (const int live = live_rank(to); live >= 0)
      live_.send(live, std::span<const double>{&arrival, 1});
    else
      to_others_.push_back(arrival);
  }
  /// From a rank that is not represented comes what this one sends to one, at the same time.
  void recv(const Operation& op, int from, std::span<std::byte>) override {
    double arrival = 0;
    if (const int live = live_rank(from); live >= 0) {
      live_.recv(live, std::span<double>{&arrival, 1});
    } else {
      if (to_others_.empty())
        throw CommError(text(describe(op), ": rank ", from, " of ", size(), " is not simulated, and this one, which ",
                             "stands for it, has sent nothing that could be received"));
      arrival = to_others_.front();
      to_others_.pop_front();
    }
    clock_->wait_until(arrival);
  }

  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> chosen) override {
    std::vector<int> members, represented, live_members;
    int index = 0;
    for (int i : chosen) {
      if (const int live = live_rank(i); live >= 0) {
        represented.push_back(static_cast<int>(members.size()));
        live_members.push_back(live);
      }
      if (i == rank_) index = static_cast<int>(members.size());
      members.push_back(member(i));
    }
    return std::make_shared<SimulatedBackend>(links_, *clock_, std::move(members), index, std::move(represented),
                                              live_.subset(live_members));
  }

 private:
  static double bytes_of(const Operation& op) {
    return static_cast<double>(op.count) * static_cast<double>(size_of(op.dtype));
  }
  int member(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  /// The live rank of a rank of the group; -1 if it is not represented.
  int live_rank(int rank) const {
    const auto at = std::lower_bound(represented_.begin(), represented_.end(), rank);
    return at != represented_.end() && *at == rank ? static_cast<int>(at - represented_.begin()) : -1;
  }
  /// Begins when the last rank is there and what the group has begun before has ended.
  void together(double seconds) {
    const double begin = std::max(all_there(), stream_);
    stream_ = begin + seconds;
    if (overlaps()) {
      under_way_.push_back({begin, stream_});
      ++number_;
      return;
    }
    clock_->wait_until(begin);
    clock_->communicate(seconds);
  }
  double all_there() const {
    const double now = clock_->now();
    if (live_.size() == 1) return now;
    std::vector<double> all(static_cast<std::size_t>(live_.size()));
    live_.all_gather(std::span<const double>{&now, 1}, std::span{all});
    return *std::max_element(all.begin(), all.end());
  }

  Links links_;
  SimulatedClock* clock_;
  std::vector<int> members_;
  int rank_;
  std::vector<int> represented_;
  Comm live_;
  CollectiveTimes times_;
  double stream_ = 0;  ///< when all that was begun will have ended
  struct UnderWay {
    double begin, end;
  };
  std::deque<UnderWay> under_way_;  ///< numbers joined_ + 1 to number_
  std::uint64_t number_ = 0, joined_ = 0;
  std::deque<double> to_others_;  ///< arrivals of messages to ranks that are not represented
  std::map<int, double> link_free_;
};

/// The communicator of a cluster of `ranks` ranks for the thread that is `live.rank()` of those represented, ascending
/// ranks of the cluster. `clock` must outlive it.
inline Comm simulated_comm(const Links& links, SimulatedClock& clock, int ranks, const std::vector<int>& represented,
                           const Comm& live) {
  if (links.ranks_per_node < 1) throw ConfigError(text("a node has at least 1 rank, got ", links.ranks_per_node));
  std::vector<int> members(static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r) members[static_cast<std::size_t>(r)] = r;
  const int rank = represented.at(static_cast<std::size_t>(live.rank()));
  return Comm{std::make_shared<SimulatedBackend>(links, clock, std::move(members), rank, represented, live)};
}

}  // namespace zeropp
