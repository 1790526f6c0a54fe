// SPDX-License-Identifier: Apache-2.0
// Ranks as MPI processes, for programs that link zeropp::mpi. Sums are taken in rank order from the same code as on
// threads, so the bits are equal. After a CommError from here the process should end: MPI may still be reading what it
// was told to send (`launch` ends all ranks).
#pragma once

#include <mpi.h>

#include <cstring>
#include <utility>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/mpi/shared.hpp>
#include <zeropp/comm/sum.hpp>

namespace zeropp {

namespace detail {

class MpiBackend final : public CommBackend {
 public:
  /// Takes a duplicate of `comm`, which stays the caller's; all its ranks must do so together.
  MpiBackend(MPI_Comm comm, const MpiOptions& options) : shared_(std::make_shared<MpiShared>(options)) {
    mpi_check(MPI_Comm_dup(comm, &comm_), "duplicating the communicator");
    take_names();
  }
  /// Takes over `own`.
  MpiBackend(MPI_Comm own, std::shared_ptr<MpiShared> shared) : shared_(std::move(shared)), comm_(own) { take_names(); }
  ~MpiBackend() override {
    if (mpi_runs() && shared_->failure.empty()) MPI_Comm_free(&comm_);
  }
  MpiBackend(const MpiBackend&) = delete;
  MpiBackend& operator=(const MpiBackend&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  std::string_view name() const override { return "MPI"; }
  int in_world(int rank) const override { return world(rank); }
  std::chrono::nanoseconds limit() const override { return shared_->limit; }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    guarded(call_of(op), [&](const std::string& call) {
      if (shared_->checked) agree(call, Fingerprint::of(op, pieces));
      // Two steps are under way at a time: one is summed while the next one arrives. Memory stays below 16 MiB.
      const auto width = static_cast<std::int64_t>(size_of(op.dtype)), others = std::int64_t{size() - 1};
      const auto most = std::clamp<std::int64_t>((8 << 20) / others, 4 << 10, 1 << 20) / width;
      const auto scratch = [&](int step) { return scratch_.data() + step * others * most * width; };
      std::int64_t largest = 0;
      for (auto& piece : pieces) largest = std::max(largest, ceil_div(piece.count, size()));
      if (largest > 0) scratch_.resize(static_cast<std::size_t>(2 * others * most * width));
      Step steps[2] = {{requests()}, {requests()}};
      int older = 0;
      for (auto& piece : pieces)
        for (std::int64_t at = 0; at < ceil_div(piece.count, size()); at += most, older ^= 1) {
          finish_sum(steps[older], op.dtype, call);
          post_sum(steps[older], op.dtype, piece, at, most, scratch(older));
        }
      finish_sum(steps[older], op.dtype, call);
      finish_sum(steps[older ^ 1], op.dtype, call);
    });
  }

  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank_, size());
    guarded(call_of(op), [&](const std::string& call) {
      if (shared_->checked) agree(call, Fingerprint::of(op, pieces));
      MpiRequests requests(comm_, world_ranks_, world_ranks_);
      for (auto& piece : pieces)
        for (int step = 1; step < size(); ++step) {  // everybody starts with another neighbour
          const int to = (rank_ + step) % size(), from = (rank_ + size() - step) % size();
          requests.receive(place(piece, from, op), part_bytes(piece, from, op), from, tag_data);
          requests.send(piece.part, part_bytes(piece, rank_, op), to, tag_data);
        }
      for (auto& piece : pieces) copy(place(piece, rank_, op), piece.part, part_bytes(piece, rank_, op));
      requests.wait(*shared_, world(rank_), call);
    });
  }

  void broadcast(const Operation& op, std::span<std::byte> data) override {
    guarded(call_of(op), [&](const std::string& call) {
      if (shared_->checked) agree(call, Fingerprint::of(op, {}));
      for (std::size_t at = 0; at < data.size(); at += MpiRequests::largest) {
        MpiRequests requests(comm_, world_ranks_, world_ranks_);
        const int count = static_cast<int>(std::min(MpiRequests::largest, data.size() - at));
        MPI_Request request;
        mpi_check(MPI_Ibcast(data.data() + at, count, MPI_BYTE, op.root, comm_, &request), call);
        requests.add_collective(request);
        requests.wait(*shared_, world(rank_), call);
      }
    });
  }

  void all_to_all(const Operation& op, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    guarded(call_of(op), [&](const std::string& call) {
      if (shared_->checked) {
        const auto said = agree(call, Fingerprint::of(op, {}), send_bytes);
        for (std::size_t r = 0; r < said.size(); ++r)
          if (said[r].bytes != receive_bytes[r])
            throw CommError(text(call, ": rank ", world(static_cast<int>(r)), " sends ", said[r].bytes,
                                 " bytes to rank ", world(rank_), ", which expects ", receive_bytes[r]));
      }
      MpiRequests requests(comm_, world_ranks_, world_ranks_);
      const std::byte* from = in.data();
      std::byte* to = out.data();
      const std::byte* own = nullptr;
      for (int r = 0; r < size(); ++r) {
        const auto sent = static_cast<std::size_t>(send_bytes[static_cast<std::size_t>(r)]);
        if (r != rank_) requests.send(from, sent, r, tag_data);
        if (r == rank_) own = from;
        from += sent;
      }
      for (int r = 0; r < size(); ++r) {
        const auto received = static_cast<std::size_t>(receive_bytes[static_cast<std::size_t>(r)]);
        r == rank_ ? copy(to, own, received) : requests.receive(to, received, r, tag_data);
        to += received;
      }
      requests.wait(*shared_, world(rank_), call);
    });
  }

  bool buffers_sends() const override { return true; }
  void send(const Operation& op, int to, std::span<const std::byte> data) override {
    guarded(call_of(op), [&](const std::string& call) {
      std::erase_if(shared_->sends, [&](auto& send) { return send->requests.progress(call), send->requests.empty(); });
      shared_->sends.push_back(std::unique_ptr<MpiSend>(new MpiSend{{op.count, static_cast<std::int32_t>(op.dtype), 0},
                                                                    {data.begin(), data.end()},
                                                                    {comm_, world_ranks_, {world(rank_)}}}));
      MpiSend& send = *shared_->sends.back();
      send.requests.send(&send.header, sizeof send.header, to, tag_message);
      send.requests.send(send.data.data(), send.data.size(), to, tag_message);
    });
  }

  void recv(const Operation& op, int from, std::span<std::byte> data) override {
    guarded(call_of(op), [&](const std::string& call) {
      MpiRequests requests(comm_, world_ranks_, {world(rank_)});
      MpiSend::Header header{};
      requests.receive(&header, sizeof header, from, tag_message);
      requests.wait(*shared_, world(rank_), call);
      if (header.count != op.count || header.dtype != static_cast<std::int32_t>(op.dtype)) {
        const Operation theirs{0, Collective::send, static_cast<DType>(header.dtype), header.count, rank_};
        throw CommError(differ_text(world(rank_), call, world(from), call_text(theirs, world(rank_))));
      }
      requests.receive(data.data(), data.size(), from, tag_message);
      requests.wait(*shared_, world(rank_), call);
    });
  }

  void barrier(const Operation& op) override {
    guarded(call_of(op), [&](const std::string& call) {
      if (shared_->checked) {
        agree(call, Fingerprint::of(op, {}));
      } else {
        wait_for_all(call);
      }
    });
  }

  std::shared_ptr<CommBackend> subset(const Operation& op, std::span<const int> members) override {
    std::shared_ptr<CommBackend> backend;
    guarded(call_of(op), [&](const std::string& call) {
      // MPI cannot be told how long to wait for the members of a new group, so they meet here first.
      std::vector<Piece> names;
      for (int member : members) names.push_back({nullptr, nullptr, member});
      exchange(*shared_, {comm_, rank_, tag_subset, world_ranks_, members}, call, Fingerprint::of(op, names), {});
      MPI_Group all, some;
      MPI_Comm comm;
      mpi_check(MPI_Comm_group(comm_, &all), call);
      mpi_check(MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &some), call);
      mpi_check(MPI_Comm_create_group(comm_, some, tag_subset, &comm), call);
      mpi_check(MPI_Group_free(&some), call);
      mpi_check(MPI_Group_free(&all), call);
      backend = std::make_shared<MpiBackend>(comm, shared_);
    });
    return backend;
  }

  /// The end of the program on this rank: returns when all ranks are there and everything sent has been taken.
  void finish() {
    guarded(end_of_program, [&](const std::string& call) {
      for (auto& send : shared_->sends) send->requests.wait(*shared_, world(rank_), "a send that nobody received");
      shared_->sends.clear();
      if (!shared_->checked) return wait_for_all(call);
      Fingerprint end{};
      end.kind = Fingerprint::kind_of_end;
      agree(call, end);
    });
  }

 private:
  static constexpr int tag_data = 1, tag_message = 2, tag_agree = 3, tag_subset = 4;

  /// One step of a reduce_scatter: what the other ranks send is under way into `in`.
  struct Step {
    std::unique_ptr<MpiRequests> requests;
    std::vector<const void*> in = {};
    void* out = nullptr;
    std::int64_t count = 0;
  };
  std::unique_ptr<MpiRequests> requests() const {
    return std::make_unique<MpiRequests>(comm_, world_ranks_, world_ranks_);
  }
  void post_sum(Step& step, DType dtype, const Piece& piece, std::int64_t at, std::int64_t most, std::byte* scratch) {
    const auto width = static_cast<std::int64_t>(size_of(dtype));
    const auto part = [&](int r) {  // the elements of rank r's part that belong to this step
      const auto begin = part_begin(piece.count, r, size()), end = part_begin(piece.count, r + 1, size());
      return std::pair{std::min(begin + at, end), std::min(begin + at + most, end)};
    };
    auto* whole = static_cast<std::byte*>(piece.whole);
    const auto [begin, end] = part(rank_);
    step.count = end - begin;
    step.out = static_cast<std::byte*>(piece.part) + (begin - part_begin(piece.count, rank_, size())) * width;
    step.in.assign(world_ranks_.size(), whole + begin * width);
    for (int away = 1; away < size(); ++away) {  // everybody starts with another neighbour
      const int from = (rank_ + size() - away) % size(), to = (rank_ + away) % size();
      step.in[static_cast<std::size_t>(from)] = scratch;
      step.requests->receive(scratch, static_cast<std::size_t>(step.count * width), from, tag_data);
      scratch += most * width;
      const auto [their_begin, their_end] = part(to);
      step.requests->send(whole + their_begin * width, static_cast<std::size_t>((their_end - their_begin) * width), to,
                          tag_data);
    }
  }
  void finish_sum(Step& step, DType dtype, const std::string& call) {
    step.requests->wait(*shared_, world(rank_), call);
    sum_in_rank_order(dtype, step.in, step.out, step.count);
    step.count = 0;
  }

  /// Every rank shows every other what it calls; returns what rank r of the group showed.
  std::vector<Fingerprint> agree(const std::string& call, const Fingerprint& mine,
                                 std::span<const std::int64_t> send_bytes = {}) const {
    std::vector<int> all(world_ranks_.size());
    for (int r = 0; r < size(); ++r) all[static_cast<std::size_t>(r)] = r;
    return exchange(*shared_, {comm_, rank_, tag_agree, world_ranks_, all}, call, mine, send_bytes);
  }

  /// Without fingerprints: waits until all ranks are here, but cannot tell which one is not.
  void wait_for_all(const std::string& call) {
    MPI_Request request;
    mpi_check(MPI_Ibarrier(comm_, &request), call);
    const auto waiting = requests();
    waiting->add_collective(request);
    waiting->wait(*shared_, world(rank_), call);
  }

  std::string call_of(const Operation& op) const {
    return call_text(op, op.kind == Collective::subset ? 0 : world(op.root));
  }
  template <class Work>
  void guarded(const std::string& call, const Work& work) {
    if (!shared_->failure.empty())
      throw CommError(text("rank ", world(rank_), " in ", call, ": ended because ", shared_->failure));
    try {
      work(call);
    } catch (const Error& e) {
      shared_->failure = e.what();
      throw;
    }
  }

  void take_names() {
    mpi_check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "asking MPI to report errors");
    mpi_check(MPI_Comm_rank(comm_, &rank_), "rank of this process");
    world_ranks_ = ranks_in_world(comm_);
  }
  int world(int rank) const { return world_ranks_[static_cast<std::size_t>(rank)]; }
  std::size_t part_bytes(const Piece& piece, int rank, const Operation& op) const {
    return static_cast<std::size_t>(part_begin(piece.count, rank + 1, size()) - part_begin(piece.count, rank, size())) *
           size_of(op.dtype);
  }
  std::byte* place(const Piece& piece, int rank, const Operation& op) const {
    return static_cast<std::byte*>(piece.whole) +
           static_cast<std::size_t>(part_begin(piece.count, rank, size())) * size_of(op.dtype);
  }
  static void copy(void* to, const void* from, std::size_t bytes) {
    if (to != from && bytes > 0) std::memmove(to, from, bytes);
  }

  std::shared_ptr<MpiShared> shared_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  std::vector<int> world_ranks_;    // how the ranks of this group are called in sentences
  std::vector<std::byte> scratch_;  // of reduce_scatter: two steps of what the others send
};

}  // namespace detail

/// The ranks of an MPI communicator, `comm` duplicated. All its ranks must call it together, after MPI_Init.
inline Comm mpi_comm(MPI_Comm comm = MPI_COMM_WORLD, const MpiOptions& options = {}) {
  auto backend = std::make_shared<detail::MpiBackend>(comm, options);
  return backend->size() == 1 ? Comm{} : Comm{std::move(backend)};
}

}  // namespace zeropp
