// SPDX-License-Identifier: Apache-2.0
// The collectives of thread ranks: publish pointers, meet, compare, and then every rank reads the memory of the others
// directly: nothing is copied in between, and sums go in rank order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/sum.hpp>
#include <zeropp/comm/threads/world.hpp>

namespace zeropp {

namespace detail {

/// The pointers and sizes that one rank shows the others of its group while they are in a collective.
struct alignas(64) ThreadSlot {
  Operation op;
  std::span<const Piece> pieces = {};
  const std::byte* data = nullptr;
  std::span<const std::int64_t> send_bytes = {}, receive_bytes = {};
};

struct ThreadMessage {
  DType dtype;
  std::int64_t count;
  std::vector<std::byte> data;
};
struct alignas(64) ThreadMailbox {
  std::mutex mutex;
  std::map<int, std::deque<ThreadMessage>> from;
};

class ThreadGroupState {
 public:
  ThreadGroupState(std::shared_ptr<ThreadWorld> world, std::vector<int> members)
      : rendezvous(std::move(world), std::move(members)),
        slots(static_cast<std::size_t>(rendezvous.size())),
        mailboxes(slots.size()) {}

  Rendezvous rendezvous;
  std::vector<ThreadSlot> slots;
  std::vector<ThreadMailbox> mailboxes;
};

class ThreadBackend final : public CommBackend {
 public:
  ThreadBackend(std::shared_ptr<ThreadGroupState> group, int rank) : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->rendezvous.size(); }
  std::string_view name() const override { return "threads"; }
  int in_world(int rank) const override { return group_->rendezvous.world_rank(rank); }
  std::chrono::nanoseconds limit() const override { return world().limit(); }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    together({.op = op, .pieces = pieces}, [&] {
      std::vector<const void*> in(group_->slots.size());
      for (std::size_t p = 0; p < pieces.size(); ++p) {
        const auto begin = part_begin(pieces[p].count, rank_, size());
        for (std::size_t r = 0; r < in.size(); ++r)
          in[r] = static_cast<const std::byte*>(group_->slots[r].pieces[p].whole) + bytes(begin, op);
        sum_in_rank_order(op.dtype, in, pieces[p].part, part_begin(pieces[p].count, rank_ + 1, size()) - begin);
      }
    });
  }

  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    together({.op = op, .pieces = pieces}, [&] {
      for (std::size_t p = 0; p < pieces.size(); ++p)
        for (int r = 0; r < size(); ++r) {
          const auto begin = part_begin(pieces[p].count, r, size()), end = part_begin(pieces[p].count, r + 1, size());
          copy(static_cast<std::byte*>(pieces[p].whole) + bytes(begin, op), slot(r).pieces[p].part,
               bytes(end - begin, op));
        }
    });
  }

  void broadcast(const Operation& op, std::span<std::byte> data) override {
    together({.op = op, .data = data.data()}, [&] { copy(data.data(), slot(op.root).data, data.size()); });
  }

  void all_to_all(const Operation& op, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    together({.op = op, .data = in.data(), .send_bytes = send_bytes, .receive_bytes = receive_bytes}, [&] {
      std::byte* to = out.data();
      for (int r = 0; r < size(); ++r) {
        std::int64_t skip = 0;
        for (int before = 0; before < rank_; ++before) skip += slot(r).send_bytes[static_cast<std::size_t>(before)];
        const auto count = static_cast<std::size_t>(receive_bytes[static_cast<std::size_t>(r)]);
        if (count == 0) continue;
        copy(to, slot(r).data + skip, count);
        to += count;
      }
    });
  }

  bool buffers_sends() const override { return true; }
  void send(const Operation& op, int to, std::span<const std::byte> data) override {
    if (world().failed()) world().follow(call(op));
    ThreadMessage message{op.dtype, op.count, {data.begin(), data.end()}};
    ThreadMailbox& box = group_->mailboxes[static_cast<std::size_t>(to)];
    {
      std::lock_guard lock(box.mutex);
      box.from[rank_].push_back(std::move(message));
    }
    world().wake(group_->rendezvous.world_rank(to));
  }

  void recv(const Operation& op, int from, std::span<std::byte> data) override {
    const Call mine = call(op);
    ThreadMailbox& box = group_->mailboxes[static_cast<std::size_t>(rank_)];
    std::optional<ThreadMessage> message;
    const auto take = [&] {
      std::lock_guard lock(box.mutex);
      auto& queue = box.from[from];
      if (message || queue.empty()) return message.has_value();
      message = std::move(queue.front());
      queue.pop_front();
      return true;
    };
    const bool in_time = world().sleep(
        mine, [&] { return take() || world().failed() || world().ended(mine.peer); }, true);
    if (!take()) {
      if (world().failed()) world().follow(mine);
      if (in_time)
        world().refuse(text("rank ", mine.rank, " calls ", call_text(mine), ", which ended without sending it"));
      auto sentence = text("rank ", mine.rank, " waited ", seconds_text(world().limit()), " in ", call_text(mine),
                           ", which did not send");
      if (const auto other = world().waits_in(mine.peer))
        sentence += text("; rank ", mine.peer, " waits in ", call_text(*other));
      world().refuse(sentence);
    }
    if (message->dtype != op.dtype || message->count != op.count)
      world().refuse(differ_text(mine.rank, call_text(mine), mine.peer,
                                 call_text({0, Collective::send, message->dtype, message->count, 0}, mine.rank)));
    copy(data.data(), message->data.data(), data.size());
  }

  void barrier(const Operation& op) override {
    together({.op = op}, [] {});
  }

  std::shared_ptr<CommBackend> subset(const Operation& op, std::span<const int> members) override {
    std::vector<int> world_ranks;
    int rank = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
      world_ranks.push_back(group_->rendezvous.world_rank(members[i]));
      if (members[i] == rank_) rank = static_cast<int>(i);
    }
    const auto& shared = group_->rendezvous.shared_world();
    auto group = shared->join(group_->rendezvous.world_rank(rank_), world_ranks,
                              [&] { return std::make_shared<ThreadGroupState>(shared, world_ranks); });
    auto backend = std::make_shared<ThreadBackend>(std::move(group), rank);
    backend->together({.op = op}, [] {});  // a member that names other members is found here, not later
    return backend;
  }

 private:
  ThreadWorld& world() const { return group_->rendezvous.world(); }
  ThreadSlot& slot(int rank) const { return group_->slots[static_cast<std::size_t>(rank)]; }
  Call call(const Operation& op) const {
    return {op, group_->rendezvous.world_rank(rank_), group_->rendezvous.world_rank(op.root)};
  }
  static std::size_t bytes(std::int64_t count, const Operation& op) {
    return static_cast<std::size_t>(count) * size_of(op.dtype);
  }
  static void copy(void* to, const void* from, std::size_t count) {
    if (to != from && count > 0) std::memmove(to, from, count);
  }

  /// Shows `mine`, meets the others, compares, does this rank's part of the work, and waits for the others' parts: from
  /// then on the caller may change its memory again.
  template <class Work>
  void together(const ThreadSlot& mine, const Work& work) {
    const Call call = this->call(mine.op);
    slot(rank_) = mine;
    group_->rendezvous.enter(rank_, call);
    // All ranks look at the same slots and come to the same verdict, so all leave together also where they differ.
    const auto verdict = compare();
    if (verdict.empty()) work();
    group_->rendezvous.leave(rank_, call);
    if (!verdict.empty()) world().refuse(verdict);
  }

  std::string compare() const {
    for (int r = 1; r < size(); ++r)
      if (!(slot(0).op == slot(r).op) || !same_counts(slot(0), slot(r)))
        return differ_text(group_->rendezvous.world_rank(0), describe_slot(0, r), group_->rendezvous.world_rank(r),
                           describe_slot(r, 0));
    if (slot(0).op.kind != Collective::all_to_all) return {};
    for (int from = 0; from < size(); ++from)
      for (int to = 0; to < size(); ++to) {
        const auto sent = slot(from).send_bytes[static_cast<std::size_t>(to)];
        const auto expected = slot(to).receive_bytes[static_cast<std::size_t>(from)];
        if (sent != expected)
          return text(call_text(slot(0).op, 0), ": rank ", group_->rendezvous.world_rank(from), " sends ", sent,
                      " bytes to rank ", group_->rendezvous.world_rank(to), ", which expects ", expected);
      }
    return {};
  }
  static bool same_counts(const ThreadSlot& a, const ThreadSlot& b) {
    return std::equal(a.pieces.begin(), a.pieces.end(), b.pieces.begin(), b.pieces.end(),
                      [](const Piece& x, const Piece& y) { return x.count == y.count; });
  }
  std::string describe_slot(int rank, int other) const {
    const ThreadSlot &mine = slot(rank), &theirs = slot(other);
    auto out = call_text(mine.op, group_->rendezvous.world_rank(mine.op.root));
    if (mine.op == theirs.op) out += pieces_text(mine.pieces, theirs.pieces);  // then these differ
    return out;
  }

  std::shared_ptr<ThreadGroupState> group_;
  int rank_;
};

}  // namespace detail
}  // namespace zeropp
