// SPDX-License-Identifier: Apache-2.0
// Ranks as processes joined by TCP, without MPI. In every collective each rank sends each other one its fingerprint and
// the data in one message, so ranks that disagree are always found, and a rank is never further ahead than one such
// meeting: what has come and is not taken stays below that. Sums go in rank order, with the bits of threads. Meant for
// what the host decides, beside GPUs; host memory of any size goes the same way.
#pragma once

#include <memory>
#include <utility>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/sum.hpp>
#include <zeropp/comm/tcp/links.hpp>
#include <zeropp/comm/tcp/rendezvous.hpp>

namespace zeropp {

namespace detail {

class TcpBackend final : public CommBackend {
 public:
  /// The group `group` of the ranks `world_ranks`, of which `rank` is this one.
  TcpBackend(std::shared_ptr<TcpLinks> links, std::uint64_t group, std::vector<int> world_ranks, int rank)
      : links_(std::move(links)), group_(group), world_ranks_(std::move(world_ranks)), rank_(rank) {}
  /// All ranks.
  explicit TcpBackend(const std::shared_ptr<TcpLinks>& links)
      : TcpBackend(links, 0, numbers(links->size()), links->rank()) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  std::string_view name() const override { return "TCP"; }
  int in_world(int rank) const override { return world(rank); }
  std::chrono::nanoseconds limit() const override { return links_->limit(); }
  std::string failure() const override { return links_->failure().value_or(TcpFailure{}).sentence; }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    in_rounds(op, pieces, [&](const std::string& call, const std::vector<Slice>& round) {
      auto parts = no_parts();
      for (int to = 0; to < size(); ++to)
        for (auto& slice : round) parts[index(to)].push_back(bytes_of(slice.piece->whole, slice.of(to, size()), op));
      const auto came = meet(call, Fingerprint::of(op, pieces), parts);
      std::size_t at = 0;
      for (auto& slice : round) {
        const auto mine = slice.of(rank_, size());
        std::vector<const void*> in;
        for (int r = 0; r < size(); ++r)
          in.push_back(r == rank_ ? bytes_of(slice.piece->whole, mine, op).data() : data_of(came, r) + at);
        const auto begin = part_begin(slice.piece->count, rank_, size());
        auto* out = static_cast<std::byte*>(slice.piece->part) + bytes(mine.begin - begin, op);
        sum_in_rank_order(op.dtype, in, out, mine.end - mine.begin);
        at += bytes(mine.end - mine.begin, op);
      }
    });
  }

  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    in_rounds(op, pieces, [&](const std::string& call, const std::vector<Slice>& round) {
      const auto from_part = [&](const Slice& slice) {
        const auto mine = slice.of(rank_, size());
        const auto begin = part_begin(slice.piece->count, rank_, size());
        return bytes_of(slice.piece->part, {mine.begin - begin, mine.end - begin}, op);
      };
      TcpParts mine;
      for (auto& slice : round) mine.push_back(from_part(slice));
      const auto came = meet(call, Fingerprint::of(op, pieces), to_all(mine));
      for (int r = 0; r < size(); ++r) {
        const std::byte* from = data_of(came, r);
        for (auto& slice : round) {
          const auto theirs = bytes_of(slice.piece->whole, slice.of(r, size()), op);
          copy(const_cast<std::byte*>(theirs.data()), r == rank_ ? from_part(slice).data() : from, theirs.size());
          if (r != rank_) from += theirs.size();
        }
      }
    });
  }

  void broadcast(const Operation& op, std::span<std::byte> data) override {
    guarded(call_of(op), [&](const std::string& call) {
      std::size_t at = 0;
      do {
        const auto chunk = data.subspan(at, std::min<std::size_t>(most_in_round, data.size() - at));
        const auto came = meet(call, Fingerprint::of(op, {}), rank_ == op.root ? to_all({chunk}) : no_parts());
        if (rank_ != op.root) copy(chunk.data(), data_of(came, op.root), chunk.size());
        at += chunk.size();
      } while (at < data.size());
    });
  }

  void all_to_all(const Operation& op, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    guarded(call_of(op), [&](const std::string& call) {
      const auto part = [](auto whole, std::span<const std::int64_t> sizes, int r) {
        std::int64_t skip = 0;
        for (int before = 0; before < r; ++before) skip += sizes[index(before)];
        return whole.subspan(static_cast<std::size_t>(skip), static_cast<std::size_t>(sizes[index(r)]));
      };
      auto parts = no_parts();
      for (int to = 0; to < size(); ++to) parts[index(to)] = {part(in, send_bytes, to)};
      const auto came = meet(call, Fingerprint::of(op, {}), parts);
      for (int r = 0; r < size(); ++r) {
        const auto to = part(out, receive_bytes, r);
        const auto sent = r == rank_ ? send_bytes[index(r)] : came[index(r)].frame.bytes;
        if (sent != static_cast<std::int64_t>(to.size()))
          throw CommError(text(call, ": rank ", world(r), " sends ", sent, " bytes to rank ", world(rank_),
                               ", which expects ", to.size()));
        copy(to.data(), r == rank_ ? part(in, send_bytes, r).data() : data_of(came, r), to.size());
      }
    });
  }

  bool buffers_sends() const override { return true; }
  void send(const Operation& op, int to, std::span<const std::byte> data) override {
    guarded(call_of(op), [&](const std::string&) {
      links_->post(world(to), {.kind = TcpKind::message, .group = group_, .call = Fingerprint::of(op, {})}, {},
                   {data.begin(), data.end()});
    });
  }

  void recv(const Operation& op, int from, std::span<std::byte> data) override {
    guarded(call_of(op), [&](const std::string& call) {
      const int peer = world(from);
      links_->wait(call, group_, TcpKind::message, {&peer, 1}, {});
      const auto came = links_->take(peer, group_, TcpKind::message);
      const auto& sent = came.frame.call;
      if (sent.count != op.count || sent.dtype != static_cast<std::int32_t>(op.dtype)) {
        const Operation theirs{0, Collective::send, static_cast<DType>(sent.dtype), sent.count, rank_};
        throw CommError(differ_text(world(rank_), call, peer, call_text(theirs, world(rank_))));
      }
      copy(data.data(), came.data.get(), data.size());
    });
  }

  void barrier(const Operation& op) override {
    guarded(call_of(op), [&](const std::string& call) { meet(call, Fingerprint::of(op, {}), no_parts()); });
  }

  std::shared_ptr<CommBackend> subset(const Operation& op, std::span<const int> members) override {
    std::shared_ptr<CommBackend> backend;
    std::uint64_t group = 0;
    guarded(call_of(op), [&](const std::string& call) {
      std::vector<Piece> names;
      std::vector<int> world_ranks;
      int rank = 0;
      for (std::size_t i = 0; i < members.size(); ++i) {
        names.push_back({nullptr, nullptr, members[i]});
        world_ranks.push_back(world(members[i]));
        if (members[i] == rank_) rank = static_cast<int>(i);
      }
      // The first member gives the group its number, so the same members again are another group.
      if (rank == 0) group = links_->new_group();
      const auto parts = rank == 0 ? to_all({detail::bytes_of(group)}) : no_parts();
      const auto came = meet(call, Fingerprint::of(op, names), parts, members);
      if (rank != 0) copy(&group, data_of(came, 0), sizeof group);
      backend = std::make_shared<TcpBackend>(links_, group, std::move(world_ranks), rank);
    });
    return backend;
  }

  /// The end of the program on this rank: returns when all ranks are there.
  void finish() {
    guarded(end_of_program, [&](const std::string& call) { meet(call, TcpLinks::end_of_program_call(), no_parts()); });
  }

 private:
  static constexpr std::int64_t most_in_round = 8 << 20;  ///< bytes that a rank receives in a meeting, or a little more

  struct Range {
    std::int64_t begin, end;
  };
  /// Elements [at, at + most) of every rank's part of a piece.
  struct Slice {
    const Piece* piece;
    std::int64_t at, most;
    Range of(int rank, int ranks) const {
      const auto begin = part_begin(piece->count, rank, ranks), end = part_begin(piece->count, rank + 1, ranks);
      return {std::min(begin + at, end), std::min(begin + at + most, end)};
    }
  };

  /// Cuts the pieces into rounds of about most_in_round bytes; at least one, in which the ranks meet.
  template <class Round>
  void in_rounds(const Operation& op, std::span<const Piece> pieces, const Round& round) {
    guarded(call_of(op), [&](const std::string& call) {
      const auto room =
          std::max<std::int64_t>(1024, most_in_round / (size() * static_cast<std::int64_t>(size_of(op.dtype))));
      std::vector<Slice> slices;
      auto left = room;
      bool met = false;
      const auto go = [&] {
        round(call, slices);
        slices.clear();
        left = room;
        met = true;
      };
      for (auto& piece : pieces)
        for (std::int64_t at = 0, width = ceil_div(piece.count, size()); at < width;) {
          const auto most = std::min(left, width - at);
          slices.push_back({&piece, at, most});
          at += most;
          left -= most;
          if (left == 0) go();
        }
      if (!slices.empty() || !met) go();
    });
  }

  /// Empty parts, one for each rank of the group, to be filled with the data sent to it.
  std::vector<TcpParts> no_parts() const { return std::vector<TcpParts>(world_ranks_.size()); }
  std::vector<TcpParts> to_all(const TcpParts& parts) const {
    return std::vector<TcpParts>(world_ranks_.size(), parts);
  }

  /// Shows every other rank what this one calls, with its parts; returns what came from each. Throws CommError where
  /// they do not call the same: all see the same and come to the same verdict.
  std::vector<TcpArrival> meet(const std::string& call, const Fingerprint& mine, const std::vector<TcpParts>& parts) {
    return meet(call, mine, parts, numbers(size()));
  }
  std::vector<TcpArrival> meet(const std::string& call, const Fingerprint& mine, const std::vector<TcpParts>& parts,
                               std::span<const int> members) {
    std::vector<int> others;
    const auto here = static_cast<std::size_t>(std::find(members.begin(), members.end(), rank_) - members.begin());
    for (std::size_t away = 1; away < members.size(); ++away) {  // everybody starts with another neighbour
      const int to = members[(here + away) % members.size()];
      others.push_back(world(to));
      links_->post(world(to), {.group = group_, .call = mine}, parts[index(to)]);
    }
    links_->wait(call, group_, TcpKind::meeting, others, others);
    std::vector<TcpArrival> came(members.size());
    for (std::size_t m = 0; m < members.size(); ++m)
      m == here ? void(came[m].frame.call = mine)
                : void(came[m] = links_->take(world(members[m]), group_, TcpKind::meeting));
    const auto& first = came[0].frame.call;
    for (std::size_t m = 1; m < came.size(); ++m)
      if (const auto& other = came[m].frame.call; !other.same_call(first))
        throw CommError(differ_text(world(members[0]), first.describe(other, world_ranks_), world(members[m]),
                                    other.describe(first, world_ranks_)));
    return came;
  }

  template <class Work>
  void guarded(const std::string& call, const Work& work) {
    links_->expect_no_failure(call);
    try {
      work(call);
    } catch (const Error& e) {
      links_->fail(e.what(), static_cast<int>(e.exit_code()));
      throw;
    }
  }

  static std::vector<int> numbers(int size) {
    std::vector<int> all(static_cast<std::size_t>(size));
    for (int r = 0; r < size; ++r) all[static_cast<std::size_t>(r)] = r;
    return all;
  }
  std::string call_of(const Operation& op) const {
    return call_text(op, op.kind == Collective::subset ? 0 : world(op.root));
  }
  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }
  int world(int rank) const { return world_ranks_[index(rank)]; }
  static const std::byte* data_of(const std::vector<TcpArrival>& came, int rank) {
    return came[index(rank)].data.get();
  }
  static std::size_t bytes(std::int64_t count, const Operation& op) {
    return static_cast<std::size_t>(count) * size_of(op.dtype);
  }
  static std::span<const std::byte> bytes_of(const void* data, Range range, const Operation& op) {
    if (range.begin == range.end) return {};
    return {static_cast<const std::byte*>(data) + bytes(range.begin, op), bytes(range.end - range.begin, op)};
  }
  static void copy(void* to, const void* from, std::size_t count) {
    if (to != from && count > 0) std::memmove(to, from, count);
  }

  std::shared_ptr<TcpLinks> links_;
  std::uint64_t group_;
  std::vector<int> world_ranks_;  // how the ranks of this group are called in sentences
  int rank_;
};

/// Waits until all ranks have joined.
inline std::shared_ptr<TcpLinks> tcp_links(const TcpPlace& place, std::chrono::nanoseconds limit) {
  limit = checked_limit(limit);
  return std::make_shared<TcpLinks>(place.rank, TcpRendezvous(place, limit).join(), limit);
}

}  // namespace detail

/// The processes that meet at `place`: for programs that do not use `launch`. Returns when all have come; throws
/// CommError with the missing ones where that takes longer than the limit, which then is that of every operation.
inline Comm tcp_comm(const TcpPlace& place, std::chrono::nanoseconds limit = std::chrono::seconds(300)) {
  if (place.size < 1 || place.rank < 0 || place.rank >= place.size)
    throw ConfigError(text("there is no rank ", place.rank, " of ", place.size, " ranks"));
  if (place.size == 1) return Comm{};
  return Comm{std::make_shared<detail::TcpBackend>(detail::tcp_links(place, limit))};
}

}  // namespace zeropp
