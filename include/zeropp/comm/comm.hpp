// SPDX-License-Identifier: Apache-2.0
// The communicator: typed collectives over the ranks of a group. `Comm` is a handle (copies share the group); what
// moves the bytes is a `CommBackend`: ranks as threads, as processes (TCP, MPI), as GPUs (on_device.hpp), or none at
// all (one rank, dry). Sums are taken in rank order on every backend but NCCL, so threads and processes give the same
// bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/trace.hpp>
#include <zeropp/comm/backend.hpp>
#include <zeropp/device/pending.hpp>

namespace zeropp {

/// Calls and bytes that this rank sent, by kind of collective.
struct Traffic {
  std::array<std::int64_t, collective_kinds> calls{};
  std::array<std::int64_t, collective_kinds> bytes{};

  std::int64_t calls_of(Collective kind) const { return calls[static_cast<std::size_t>(kind)]; }
  std::int64_t bytes_of(Collective kind) const { return bytes[static_cast<std::size_t>(kind)]; }
};

class Comm {
 public:
  Comm() = default;  ///< one rank: every collective is a copy or nothing
  explicit Comm(std::shared_ptr<CommBackend> backend) : state_(std::make_shared<State>(std::move(backend))) {}

  int rank() const { return backend() ? backend()->rank() : 0; }
  int size() const { return backend() ? backend()->size() : 1; }
  std::string_view name() const { return backend() ? backend()->name() : "one rank"; }
  const Traffic& traffic() const { return state_->traffic; }
  /// The number among all ranks of rank `rank` of this group: how sentences call it.
  int in_world(int rank) const { return backend() ? backend()->in_world(rank) : rank; }
  /// How long this rank waits for the others in one operation.
  std::chrono::nanoseconds limit() const { return backend() ? backend()->limit() : std::chrono::seconds(300); }
  /// The failure of another rank, where it is known without an operation; else empty. From any thread.
  std::string failure() const { return backend() ? backend()->failure() : std::string{}; }

  /// The communicator over the same ranks that moves host memory, for what the host decides together; itself unless it
  /// moves a GPU's. Memory given to any other operation is the host's or the GPU's, whichever this communicator moves.
  const Comm& host() const { return backend() && backend()->host() ? *backend()->host() : *this; }
  /// Whether operations may go on after their calls, beside what computes.
  bool overlaps() const { return backend() && backend()->overlaps(); }
  /// Equal for copies of one communicator, and for nothing else while one of them lives.
  const void* identity() const { return state_.get(); }
  /// Whether sends return before their receivers arrive.
  bool buffers_sends() const { return !backend() || backend()->buffers_sends(); }
  /// From now on collectives of this group are recorded; a Mesh hands it on to the communicators of its axes.
  void record(Recorder* recorder) const { state_->recorder = recorder; }
  Recorder* recorder() const { return state_->recorder; }
  /// Says in traces which axis of a mesh the group runs along.
  void label(std::string_view axis) const { state_->axis = axis; }
  const std::string& label() const { return state_->axis; }

  /// Sum over ranks, in place. It *is* reduce_scatter followed by all_gather, so its bits equal theirs.
  template <class T>
  void all_reduce(std::span<T> data) const {
    const auto count = static_cast<std::int64_t>(data.size());
    auto op = next(Collective::all_reduce, dtype_of<T>, count);
    if (size() == 1) return;
    const Piece piece{data.data(), data.data() + part_begin(count, rank(), size()), count};
    const auto span = sent(Collective::all_reduce, 2 * static_cast<std::size_t>(elsewhere(count)) * sizeof(T));
    backend()->reduce_scatter(op, {&piece, 1});
    op.sequence = state_->sequence++;
    backend()->all_gather(op, {&piece, 1});
    started().wait();
  }

  /// Sum of one number of the host over ranks, in rank order.
  template <class T>
  T sum(T value) const {
    host().all_reduce(std::span<T>{&value, 1});
    return value;
  }

  /// Sums `whole` over ranks; rank r gets its part (see Piece) in `part`, which may lie inside `whole`.
  template <class T>
  void reduce_scatter(std::span<T> whole, std::span<T> part) const {
    expect_part(whole.size(), part.size(), Collective::reduce_scatter);
    const Piece piece{whole.data(), part.data(), static_cast<std::int64_t>(whole.size())};
    reduce_scatter(dtype_of<T>, {&piece, 1});
  }
  /// The same for several buffers at once: one rendezvous for all of them.
  void reduce_scatter(DType dtype, std::span<const Piece> pieces) const { reduce_scatter_async(dtype, pieces).wait(); }
  /// The same, under way: see Pending for what its memory may and may not be used for meanwhile.
  /// It runs after `after`, which may be another source's: a gather of shards that are being fetched.
  [[nodiscard]] Pending reduce_scatter_async(DType dtype, std::span<const Piece> pieces, Pending after = {}) const {
    return moves_parts(Collective::reduce_scatter, dtype, pieces, std::move(after));
  }

  /// Collects the parts of all ranks in `whole`; `part` may lie inside it.
  template <class T>
  void all_gather(std::span<const T> part, std::span<T> whole) const {
    expect_part(whole.size(), part.size(), Collective::all_gather);
    const Piece piece{whole.data(), const_cast<T*>(part.data()), static_cast<std::int64_t>(whole.size())};
    all_gather(dtype_of<T>, {&piece, 1});
  }
  void all_gather(DType dtype, std::span<const Piece> pieces) const { all_gather_async(dtype, pieces).wait(); }
  [[nodiscard]] Pending all_gather_async(DType dtype, std::span<const Piece> pieces, Pending after = {}) const {
    return moves_parts(Collective::all_gather, dtype, pieces, std::move(after));
  }

  template <class T>
  void broadcast(std::span<T> data, int root) const {
    expect_rank(root, Collective::broadcast);
    auto op = next(Collective::broadcast, dtype_of<T>, static_cast<std::int64_t>(data.size()), root);
    if (size() == 1) return;
    const auto span = sent(op.kind, rank() == root ? static_cast<std::size_t>(size() - 1) * data.size_bytes() : 0);
    backend()->broadcast(op, std::as_writable_bytes(data));
    started().wait();
  }

  /// Rank r's `send_counts[s]` consecutive elements go to rank s, which keeps them in the order of ranks.
  template <class T>
  void all_to_all(std::span<const T> in, std::span<const std::int64_t> send_counts, std::span<T> out,
                  std::span<const std::int64_t> receive_counts) const;
  /// The even case: in and out hold size() equal blocks.
  template <class T>
  void all_to_all(std::span<const T> in, std::span<T> out) const {
    const std::vector<std::int64_t> counts(size(), static_cast<std::int64_t>(in.size()) / size());
    all_to_all(in, counts, out, counts);
  }

  template <class T>
  void send(int to, std::span<const T> data) const {
    expect_rank(to, Collective::send);
    const Operation op{0, Collective::send, dtype_of<T>, static_cast<std::int64_t>(data.size()), to};
    const auto span = sent(op.kind, data.size_bytes());
    backend()->send(op, to, std::as_bytes(data));
    started().wait();
  }
  template <class T>
  void recv(int from, std::span<T> data) const {
    expect_rank(from, Collective::recv);
    const Operation op{0, Collective::recv, dtype_of<T>, static_cast<std::int64_t>(data.size()), from};
    const auto span = sent(op.kind, 0, data.size_bytes());
    backend()->recv(op, from, std::as_writable_bytes(data));
    started().wait();
  }

  void barrier() const {
    auto op = next(Collective::barrier, DType::u8, 0);
    const auto span = sent(op.kind, 0);
    if (size() > 1) backend()->barrier(op);
  }

  /// The group of `members` (ranks of this group; their order is their new rank). Called by its members only.
  Comm subset(std::span<const int> members) const;

  /// The ranks that name the same colour, ordered by key, then by rank. Called by all ranks.
  Comm split(int colour, int key) const;

  /// Throws CommError unless `part` elements are what this rank owns of `whole` (see Piece).
  void expect_part(std::size_t whole, std::size_t part, Collective kind) const {
    const auto n = static_cast<std::int64_t>(whole);
    const auto mine = part_begin(n, rank() + 1, size()) - part_begin(n, rank(), size());
    if (static_cast<std::int64_t>(part) != mine)
      throw CommError(text(name_of(kind), " of ", whole, " elements over ", size(), " ranks: the part of rank ", rank(),
                           " must hold ", mine, " elements, got ", part));
  }

 private:
  struct State {
    explicit State(std::shared_ptr<CommBackend> b = {}) : backend(std::move(b)) {}
    std::shared_ptr<CommBackend> backend;
    std::uint64_t sequence = 0;
    Traffic traffic;
    Recorder* recorder = nullptr;
    std::string axis;
  };

  CommBackend* backend() const { return state_->backend.get(); }
  Operation next(Collective kind, DType dtype, std::int64_t count, int root = 0) const {
    return {state_->sequence++, kind, dtype, count, root};
  }
  /// Counts a call, and records it while the result lives.
  [[nodiscard]] Recording sent(Collective kind, std::size_t bytes, std::size_t received = 0) const {
    state_->traffic.calls[static_cast<std::size_t>(kind)] += 1;
    state_->traffic.bytes[static_cast<std::size_t>(kind)] += static_cast<std::int64_t>(bytes);
    return Recording(state_->recorder, SpanKind::collective, name_of(kind), state_->axis,
                     static_cast<std::int64_t>(bytes + received));
  }
  /// Elements of `count` that belong to other ranks.
  std::int64_t elsewhere(std::int64_t count) const {
    return count - (part_begin(count, rank() + 1, size()) - part_begin(count, rank(), size()));
  }
  Pending moves_parts(Collective kind, DType dtype, std::span<const Piece> pieces, Pending after) const;
  /// The operation for which the backend was called last.
  Pending started() const { return Pending{state_->backend, backend() ? backend()->enqueued() : 0}; }
  void expect_rank(int peer, Collective kind) const {
    if (peer < 0 || peer >= size() || (size() == 1 && kind != Collective::broadcast))
      throw CommError(text(name_of(kind), " names rank ", peer, " in a group of ", size(), " ranks"));
  }

  std::shared_ptr<State> state_ = std::make_shared<State>();
};

inline Pending Comm::moves_parts(Collective kind, DType dtype, std::span<const Piece> pieces, Pending after) const {
  after.wait_on(backend() ? backend()->stream() : nullptr);
  std::int64_t count = 0, away = 0;
  for (auto& piece : pieces) count += piece.count, away += elsewhere(piece.count);
  const auto op = next(kind, dtype, count);
  if (!backend()) {
    for (auto& piece : pieces)
      if (piece.whole != piece.part && piece.count > 0) {
        const auto bytes = static_cast<std::size_t>(piece.count) * size_of(dtype);
        kind == Collective::all_gather ? __builtin_memmove(piece.whole, piece.part, bytes)
                                       : __builtin_memmove(piece.part, piece.whole, bytes);
      }
    return {};
  }
  const auto span = size() > 1 ? sent(kind, static_cast<std::size_t>(away) * size_of(dtype))
                               : Recording(nullptr, SpanKind::collective);
  kind == Collective::all_gather ? backend()->all_gather(op, pieces) : backend()->reduce_scatter(op, pieces);
  auto pending = started();
  for (auto& block : after.let_go()) pending.hold(std::move(block));
  return pending;
}

template <class T>
void Comm::all_to_all(std::span<const T> in, std::span<const std::int64_t> send_counts, std::span<T> out,
                      std::span<const std::int64_t> receive_counts) const {
  const auto ranks = static_cast<std::size_t>(size());
  std::vector<std::int64_t> send(send_counts.begin(), send_counts.end());
  std::vector<std::int64_t> receive(receive_counts.begin(), receive_counts.end());
  std::int64_t in_count = 0, out_count = 0;
  for (auto& count : send) in_count += count, count *= std::int64_t{sizeof(T)};
  for (auto& count : receive) out_count += count, count *= std::int64_t{sizeof(T)};
  if (send.size() != ranks || receive.size() != ranks || in_count != static_cast<std::int64_t>(in.size()) ||
      out_count != static_cast<std::int64_t>(out.size()))
    throw CommError(text("all_to_all over ", ranks, " ranks: counts must be one a rank and add up to ", in.size(),
                         " sent and ", out.size(), " received, got ", in_count, " and ", out_count));
  if (!backend()) {
    if (in.size()) __builtin_memmove(out.data(), in.data(), in.size_bytes());
    return;
  }
  // The counts may differ by rank; only the kind and the type are compared.
  const auto op = next(Collective::all_to_all, dtype_of<T>, 0);
  const auto span =
      ranks > 1 ? sent(op.kind, in.size_bytes() - static_cast<std::size_t>(send[static_cast<std::size_t>(rank())]))
                : Recording(nullptr, SpanKind::collective);
  backend()->all_to_all(op, std::as_bytes(in), send, std::as_writable_bytes(out), receive);
  started().wait();
}

inline Comm Comm::subset(std::span<const int> members) const {
  bool mine = false;
  for (int member : members) {
    if (member < 0 || member >= size())
      throw CommError(text("subset names rank ", member, " in a group of ", size(), " ranks"));
    mine |= member == rank();
  }
  if (!mine) throw CommError(text("rank ", rank(), " asks for a subset of ranks that does not hold it"));
  if (members.size() == 1 && (!backend() || (backend()->moves() && !backend()->host()))) return Comm{};
  // Members number their operations together, others do not take part: the sequence number stays out of the comparison.
  return Comm{
      backend()->subset({0, Collective::subset, DType::u8, static_cast<std::int64_t>(members.size()), 0}, members)};
}

inline Comm Comm::split(int colour, int key) const {
  std::vector<std::int64_t> all(2 * static_cast<std::size_t>(size()));
  const std::array<std::int64_t, 2> mine{colour, key};
  host().all_gather(std::span<const std::int64_t>{mine}, std::span{all});
  std::vector<int> members;
  for (int r = 0; r < size(); ++r)
    if (all[2 * static_cast<std::size_t>(r)] == colour) {
      auto at = members.end();  // insert by key; ties keep the order of ranks
      while (at != members.begin() &&
             all[2 * static_cast<std::size_t>(at[-1]) + 1] > all[2 * static_cast<std::size_t>(r) + 1])
        --at;
      members.insert(at, r);
    }
  return subset(members);
}

}  // namespace zeropp
