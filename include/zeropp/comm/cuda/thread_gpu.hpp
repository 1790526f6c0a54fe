// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process whose GPUs can read each other's memory: several on one GPU, or one each without
// NCCL. As the host's thread ranks do, each publishes pointers and reads the others' memory directly, and sums are
// taken in rank order: the same bits. Order is kept by events, of which the hosts only exchange the handles:
//
//   each rank    records that its memory is ready; meets the others; its stream waits for them, works, records that it
//                has read; meets the others again; its stream waits until all have read.
//
// All ranks pass the first meeting or none does, and whoever has passed comes to the second, whatever happens in
// between or elsewhere: so what a rank shows the others is there as long as they look.
#pragma once

#include <algorithm>
#include <barrier>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/cuda/backend.hpp>
#include <zeropp/comm/cuda/shared_state.hpp>
#include <zeropp/comm/cuda/sum.hpp>

#ifdef __CUDACC__
namespace zeropp::detail {

/// The pointers and sizes that one rank shows the others of its group while they are in a collective. Its pointers to
/// host memory are good until the second meeting.
struct GpuSlot {
  Operation op;
  const Piece* pieces = nullptr;
  std::int64_t piece_count = 0;
  const std::byte* data = nullptr;
  const std::int64_t *send_bytes = nullptr, *receive_bytes = nullptr;
};

/// Two events of a rank serve all its operations: it records them anew only between meetings at which the others have
/// made their streams wait for what was recorded before.
struct GpuEvents {
  CudaEvent ready, has_read;
};

/// The objects that the ranks of a group own together: others may still wait for a rank that has ended.
struct ThreadGpuGroup {
  explicit ThreadGpuGroup(int ranks) : events(static_cast<std::size_t>(ranks)), second_meeting(ranks) {}
  std::vector<std::optional<GpuEvents>> events;  ///< by rank, made by each on its own GPU
  std::barrier<> second_meeting;
};

class ThreadGpuBackend final : public GpuBackend {
 public:
  /// `shared`: all ranks are on one GPU. A collective over `host`.
  ThreadGpuBackend(Comm host, Cuda& device, bool shared)
      : GpuBackend(std::move(host), device, true),
        shared_(shared),
        group_(shared_state<ThreadGpuGroup>(host_, size())) {
    group_->events[index(rank())].emplace();
    host_.barrier();  // all have made theirs
  }
  ~ThreadGpuBackend() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  std::string_view name() const override { return shared_ ? "threads on one GPU" : "threads with GPUs"; }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank(), size());
    together({.op = op, .pieces = pieces.data(), .piece_count = std::ssize(pieces)}, [&](std::span<const GpuSlot> slots,
                                                                                         cudaStream_t stream) {
      RankSums sums(op.dtype, size(), device_.properties().multiprocessors, stream);
      for (std::size_t p = 0; p < pieces.size(); ++p) {
        const auto [begin, end] = part(pieces[p], rank());
        const auto skip = bytes(begin, op);
        sums.add([&](int r) { return at(slots[index(r)].pieces[p].whole, skip); }, pieces[p].part, end - begin);
      }
      sums.launch();
    });
  }

  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    expect_parts_in_place(op, pieces, rank(), size());
    together({.op = op, .pieces = pieces.data(), .piece_count = std::ssize(pieces)}, [&](std::span<const GpuSlot> slots,
                                                                                         cudaStream_t stream) {
      for (std::size_t p = 0; p < pieces.size(); ++p)
        for (int r = 0; r < size(); ++r) {
          const auto [begin, end] = part(pieces[p], r);
          copy(at(pieces[p].whole, bytes(begin, op)), slots[index(r)].pieces[p].part, bytes(end - begin, op), stream);
        }
    });
  }

  void broadcast(const Operation& op, std::span<std::byte> data) override {
    together({.op = op, .data = data.data()}, [&](std::span<const GpuSlot> slots, cudaStream_t stream) {
      copy(data.data(), slots[index(op.root)].data, std::ssize(data), stream);
    });
  }

  void all_to_all(const Operation& op, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    together({.op = op, .data = in.data(), .send_bytes = send_bytes.data(), .receive_bytes = receive_bytes.data()},
             [&](std::span<const GpuSlot> slots, cudaStream_t stream) {
               std::byte* to = out.data();
               for (int r = 0; r < size(); ++r) {
                 std::int64_t skip = 0;
                 for (int before = 0; before < rank(); ++before) skip += slots[index(r)].send_bytes[before];
                 const auto count = receive_bytes[index(r)];
                 if (count == 0) continue;
                 copy(to, slots[index(r)].data + skip, count, stream);
                 to += count;
               }
             });
  }

  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> members) override {
    const Comm some = host_.subset(members);
    if (some.size() == 1) return std::make_shared<OneGpuBackend>(some, device_);
    return std::make_shared<ThreadGpuBackend>(some, device_, shared_);
  }

 private:
  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }
  static std::byte* at(void* place, std::int64_t skip) { return static_cast<std::byte*>(place) + skip; }
  std::pair<std::int64_t, std::int64_t> part(const Piece& piece, int rank) const {
    return {part_begin(piece.count, rank, size()), part_begin(piece.count, rank + 1, size())};
  }

  template <class Work>
  void together(const GpuSlot& mine, const Work& work) {
    if (mine.piece_count) expect_gpu_memory(mine.op, {mine.pieces, static_cast<std::size_t>(mine.piece_count)});
    expect_gpu_memory(mine.op, mine.data);
    GpuEvents& events = *group_->events[index(rank())];
    events.ready.record(device_.stream());
    std::vector<GpuSlot> slots(index(size()));
    host_.all_gather(std::as_bytes(std::span<const GpuSlot>{&mine, 1}), std::as_writable_bytes(std::span{slots}));

    // All ranks look at the same slots and come to the same verdict.
    std::string verdict;
    std::exception_ptr error;
    try {
      verdict = compare(slots);
      if (verdict.empty())
        enqueue(mine.op, [&](cudaStream_t stream) {
          hold_for(&GpuEvents::ready, stream);
          work(slots, stream);
          events.has_read.record(stream);
        });
    } catch (...) {
      error = std::current_exception();
    }
    group_->second_meeting.arrive_and_wait();
    if (error) std::rethrow_exception(error);
    if (!verdict.empty()) throw CommError(verdict);
    enqueue(mine.op, [&](cudaStream_t stream) { hold_for(&GpuEvents::has_read, stream); });
  }

  void hold_for(CudaEvent GpuEvents::*event, cudaStream_t stream) const {
    for (int r = 0; r < size(); ++r)
      if (r != rank()) ((*group_->events[index(r)]).*event).hold(stream);
  }

  std::string compare(std::span<const GpuSlot> slots) const {
    const GpuSlot& first = slots[0];
    for (int r = 1; r < size(); ++r)
      if (const GpuSlot& other = slots[index(r)]; !(first.op == other.op) || !same_counts(first, other))
        return differ_text(host_.in_world(0), text_of(first, other), host_.in_world(r), text_of(other, first));
    if (first.op.kind != Collective::all_to_all) return {};
    for (int from = 0; from < size(); ++from)
      for (int to = 0; to < size(); ++to) {
        const auto sent = slots[index(from)].send_bytes[to], expected = slots[index(to)].receive_bytes[from];
        if (sent != expected)
          return text(call_text(first.op, 0), ": rank ", host_.in_world(from), " sends ", sent, " bytes to rank ",
                      host_.in_world(to), ", which expects ", expected);
      }
    return {};
  }
  static std::span<const Piece> pieces(const GpuSlot& slot) {
    return {slot.pieces, static_cast<std::size_t>(slot.piece_count)};
  }
  static bool same_counts(const GpuSlot& a, const GpuSlot& b) {
    return a.piece_count == b.piece_count &&
           std::equal(a.pieces, a.pieces + a.piece_count, b.pieces,
                      [](const Piece& x, const Piece& y) { return x.count == y.count; });
  }
  std::string text_of(const GpuSlot& mine, const GpuSlot& other) const {
    auto out = call_text(mine.op, host_.in_world(mine.op.root));
    if (mine.op == other.op) out += pieces_text(pieces(mine), pieces(other));  // then these differ
    return out;
  }

  const bool shared_;
  const std::shared_ptr<ThreadGpuGroup> group_;
};

}  // namespace zeropp::detail
#endif
