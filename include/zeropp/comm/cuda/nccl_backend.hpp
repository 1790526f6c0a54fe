// SPDX-License-Identifier: Apache-2.0
// GPUs that talk by NCCL. One communicator a group, on a stream of its own; a thread that watches it: errors that NCCL
// reports in the background, ranks that failed, and operations that take longer than the limit end it on all ranks,
// with a sentence that says who, in what, and why. Sums are taken in an order that NCCL chooses, the same in every run.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <zeropp/base/version.hpp>
#include <zeropp/comm/cuda/backend.hpp>
#include <zeropp/comm/cuda/nccl_board.hpp>
#include <zeropp/comm/cuda/nccl_communicator.hpp>
#include <zeropp/comm/cuda/shared_state.hpp>

namespace zeropp::detail {

class NcclBackend final : public GpuBackend {
 public:
  /// A collective over `host`. With `one_process` all its ranks are threads of this process.
  NcclBackend(Comm host, Cuda& device, bool one_process)
      : GpuBackend(std::move(host), device, one_process), state_(std::make_shared<State>(*this)) {
    device.when_waited([weak = std::weak_ptr(state_)] {
      if (const auto state = weak.lock()) state->raise();
    });
    watch_ = std::thread([this] { watch(); });
  }
  NcclBackend(const NcclBackend&) = delete;
  NcclBackend& operator=(const NcclBackend&) = delete;
  ~NcclBackend() override {
    if (std::uncaught_exceptions() > 0) state_->board->fail({});
    if (state_->board->failure()) state_->comm.abort();       // to be destroyed it would have to be whole
    static_cast<void>(cudaStreamSynchronize(stream_.get()));  // watched: what never ends is ended
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    watch_.join();
  }

  std::string_view name() const override { return "NCCL"; }
  void* stream() const override { return stream_.get(); }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank(), size());
    const auto type = nccl_sum_type(op.dtype);
    collective(entry(op, pieces), [&](Group& group, cudaStream_t stream) {
      for (const auto& piece : pieces)
        if (piece.count > 0 && piece.count % size() == 0)
          nccl_check(ncclReduceScatter(piece.whole, piece.part, index(piece.count / size()), type, ncclSum, group.get(),
                                       stream),
                     "ncclReduceScatter");
        else  // NCCL's parts are equal ones
          each_part(op, piece, [&](int r, std::byte* place, std::int64_t count) {
            nccl_check(ncclReduce(place, r == rank() ? piece.part : nullptr, index(count), type, ncclSum, r,
                                  group.get(), stream),
                       "ncclReduce");
          });
    });
  }

  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank(), size());
    collective(entry(op, pieces), [&](Group& group, cudaStream_t stream) {
      for (const auto& piece : pieces)
        if (piece.count > 0 && piece.count % size() == 0)
          nccl_check(ncclAllGather(piece.part, piece.whole, index(bytes(piece.count / size(), op)), ncclUint8,
                                   group.get(), stream),
                     "ncclAllGather");
        else
          each_part(op, piece, [&](int r, std::byte* place, std::int64_t count) {
            nccl_check(ncclBroadcast(r == rank() ? piece.part : place, place, index(bytes(count, op)), ncclUint8, r,
                                     group.get(), stream),
                       "ncclBroadcast");
          });
    });
  }

  void broadcast(const Operation& op, std::span<std::byte> data) override {
    expect_gpu_memory(op, data.data());
    collective({op, {}}, [&](Group& group, cudaStream_t stream) {
      if (!data.empty())
        nccl_check(ncclBroadcast(data.data(), data.data(), data.size(), ncclUint8, op.root, group.get(), stream),
                   "ncclBroadcast");
    });
  }

  void all_to_all(const Operation& op, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    expect_gpu_memory(op, in.data());
    expect_gpu_memory(op, out.data());
    collective({op, {}, {send_bytes.begin(), send_bytes.end()}, {receive_bytes.begin(), receive_bytes.end()}},
               [&](Group& group, cudaStream_t stream) {
                 const std::byte* from = in.data();
                 std::byte* to = out.data();
                 for (int r = 0; r < size(); ++r) {
                   const auto sent = index(send_bytes[index(r)]), received = index(receive_bytes[index(r)]);
                   if (sent) nccl_check(ncclSend(from, sent, ncclUint8, r, group.get(), stream), "ncclSend");
                   if (received) nccl_check(ncclRecv(to, received, ncclUint8, r, group.get(), stream), "ncclRecv");
                   from += sent;
                   to += received;
                 }
               });
  }

  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> members) override {
    return make(host_.subset(members), device_, one_process_);
  }
  static std::shared_ptr<CommBackend> make(const Comm& host, Cuda& device, bool one_process) {
    if (host.size() == 1) return std::make_shared<OneGpuBackend>(host, device);
    return std::make_shared<NcclBackend>(host, device, one_process);
  }

 private:
  using Group = NcclCommunicator::Group;

  /// The state that the watching thread and the device's waits share; it outlives the backend where they still look.
  struct State {
    explicit State(const NcclBackend& owner)
        : host(owner.host_),
          rank(host.in_world(host.rank())),
          board(shared_board(host, owner.one_process_)),
          comm(shared_id(host), host.rank(), host.size()) {}

    /// Ends the communicator here and, through the board, on the other ranks of this process.
    void fail(const std::string& sentence) {
      board->fail(sentence);
      comm.abort();
    }
    bool failed() const { return comm.aborted(); }
    /// Throws what ended the communicator, if it has ended. On the rank's thread.
    void raise() const {
      if (!failed()) return;
      const auto sentence = board->failure().value_or(std::string{});
      if (sentence.empty()) host.barrier();  // throws the sentence of the rank that ended
      throw CommError(sentence.empty() ? text("rank ", rank, ": ended because another rank did")
                      : sentence.rfind(text("rank ", rank, " "), 0) == 0
                          ? sentence
                          : text("rank ", rank, ": ended because ", sentence));
    }

    const Comm host;
    const int rank;  // among all ranks
    const std::shared_ptr<NcclBoard> board;
    NcclCommunicator comm;
  };

  static std::shared_ptr<NcclBoard> shared_board(const Comm& host, bool one_process) {
    return one_process ? shared_state<NcclBoard>(host, host.size()) : std::make_shared<NcclBoard>(host.size());
  }
  static ncclUniqueId shared_id(const Comm& host) {
    NcclCommunicator::forbid_multicast();
    ncclUniqueId id{};
    if (host.rank() == 0) id = NcclCommunicator::make_id();
    host.broadcast(std::as_writable_bytes(std::span<char>{id.internal}), 0);
    return id;
  }

  static std::size_t index(std::int64_t count) { return static_cast<std::size_t>(count); }
  NcclBoard::Entry entry(const Operation& op, std::span<const Piece> pieces) const {
    expect_gpu_memory(op, pieces);
    NcclBoard::Entry entry{op, {}};
    for (const auto& piece : pieces) entry.counts.push_back(piece.count);
    return entry;
  }
  template <class F>
  void each_part(const Operation& op, const Piece& piece, const F& f) const {
    for (int r = 0; r < size(); ++r) {
      const auto begin = part_begin(piece.count, r, size()), end = part_begin(piece.count, r + 1, size());
      if (begin < end) f(r, static_cast<std::byte*>(piece.whole) + bytes(begin, op), end - begin);
    }
  }

  template <class Work>
  void collective(const NcclBoard::Entry& mine, const Work& work) {
    state_->raise();
    compare(mine);
    try {
      enqueue(
          mine.op,
          [&](cudaStream_t stream) {
            Group group(state_->comm);
            work(group, stream);
            group.end();
          },
          state_->board->come(rank()));
      // While the pool records a program it gives blocks back to the GPU, and kernels are loaded at their first use.
      // Both may wait for all that runs there, under locks that other ranks' threads need to start what it waits for.
      // So then nothing stays under way.
      if (device_.pool().recording()) stream_.wait();
    } catch (...) {
      state_->raise();  // where it was aborted meanwhile, that is the cause
      throw;
    }
    state_->raise();
  }

  /// The other ranks call the same: seen on the board; between processes, in checked builds, by meeting.
  void compare(const NcclBoard::Entry& mine) {
    std::optional<NcclBoard::Difference> other;
    if (one_process_ || !checked) {
      other = state_->board->note(rank(), mine);
    } else {
      state_->board->note(rank(), mine);
      std::vector<Operation> all(index(size()));
      host_.all_gather(std::as_bytes(std::span<const Operation>{&mine.op, 1}), std::as_writable_bytes(std::span{all}));
      for (int r = 0; r < size() && !other; ++r)
        if (!(all[index(r)] == mine.op)) other = {r, {all[index(r)], {}}};
    }
    if (!other) return;
    const auto sentence = differ_text(state_->rank, text_of(mine, other->entry), host_.in_world(other->rank),
                                      text_of(other->entry, mine));
    state_->fail(sentence);
    throw CommError(sentence);
  }
  std::string text_of(const NcclBoard::Entry& mine, const NcclBoard::Entry& other) const {
    auto out = call_text(mine.op, host_.in_world(mine.op.root));
    if (!(mine.op == other.op)) return out;
    if (mine.op.kind == Collective::all_to_all) return out + " with other numbers of bytes";
    std::vector<Piece> here, there;
    for (const auto count : mine.counts) here.push_back({nullptr, nullptr, count});
    for (const auto count : other.counts) there.push_back({nullptr, nullptr, count});
    return out + pieces_text(here, there);
  }

  void watch() {
    using Clock = std::chrono::steady_clock;
    static_cast<void>(cudaSetDevice(device_.ordinal()));
    std::uint64_t oldest = 1, seen = 0;
    Clock::time_point since;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (wake_.wait_for(lock, std::chrono::milliseconds(20), [&] { return stop_; })) return;
      }
      std::string sentence;
      try {
        if (state_->board->failure()) return state_->comm.abort();
        const auto error = state_->comm.asynchronous_error();
        const auto under_way = oldest_under_way(oldest);
        if (!under_way || !under_way->begun || seen != oldest) {
          seen = under_way && under_way->begun ? oldest : 0;
          since = Clock::now();
        }
        const auto in = under_way ? call_text(under_way->op, host_.in_world(under_way->op.root)) : "no operation";
        const auto size_text = under_way ? text(" (", bytes(under_way->op.count, under_way->op), " B)") : std::string{};
        const auto other = state_->host.failure();
        if (!other.empty())
          sentence = text("rank ", state_->rank, " in ", in, size_text, ": ended because ", other);
        else if (!error.empty())
          sentence = text("rank ", state_->rank, " in ", in, size_text, ": ", error);
        else if (seen && Clock::now() - since > limit())
          sentence = text("rank ", state_->rank, " waited ", seconds_text(limit()), " in ", in, size_text,
                          late_text(*under_way));
      } catch (const std::exception& e) {  // the GPU itself fails, under whatever was enqueued
        sentence = text("rank ", state_->rank, ": its GPU failed: ", e.what());
      }
      if (!sentence.empty()) return state_->fail(sentence);
    }
  }
  std::string late_text(const UnderWay& op) const {
    if (!one_process_) return "; which of the other ranks has not come is not known between processes";
    std::vector<int> late;
    for (const int r : state_->board->behind(op.mark)) late.push_back(host_.in_world(r));
    return late.empty() ? "; all ranks have called it" : text(" for ", ranks_text(late), ", which did not come");
  }

  std::shared_ptr<State> state_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread watch_;
};

}  // namespace zeropp::detail
