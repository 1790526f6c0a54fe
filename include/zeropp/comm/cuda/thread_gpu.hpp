// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process whose GPUs can read each other's memory: several on one GPU, or one each without
// NCCL. As the host's thread ranks do, each publishes pointers and reads the others' memory directly, and sums are
// taken in rank order: the same bits. Order is kept by events, of which the hosts only exchange the handles:
//
//   each rank    records that its memory is ready; meets the others; its stream waits for them, works, records that it
//                has read; meets the others again; its stream waits until all have read.
#pragma once

#include <algorithm>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/cuda/backend.hpp>
#include <zeropp/comm/cuda/sum.hpp>

#ifdef __CUDACC__
namespace zeropp::detail {

/// What one rank shows the others of its group while they are in a collective. Its pointers to host memory are good
/// until the second meeting.
struct GpuSlot {
  Operation op;
  const Piece* pieces = nullptr;
  std::int64_t piece_count = 0;
  const std::byte* data = nullptr;
  const std::int64_t *send_bytes = nullptr, *receive_bytes = nullptr;
  cudaEvent_t ready = nullptr, has_read = nullptr;
};

class ThreadGpuBackend final : public GpuBackend {
 public:
  /// `shared`: all ranks are on one GPU.
  ThreadGpuBackend(Comm host, Cuda& device, bool shared) : GpuBackend(std::move(host), device, true), shared_(shared) {}
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
  void together(GpuSlot mine, const Work& work) {
    if (mine.piece_count) expect_gpu_memory(mine.op, {mine.pieces, static_cast<std::size_t>(mine.piece_count)});
    expect_gpu_memory(mine.op, mine.data);
    // Two events serve all operations: a rank records them anew only between meetings at which the others have made
    // their streams wait for what was recorded before.
    ready_.record(device_.stream());
    mine.ready = ready_.get();
    mine.has_read = has_read_.get();
    std::vector<GpuSlot> slots(index(size()));
    host_.all_gather(std::as_bytes(std::span<const GpuSlot>{&mine, 1}), std::as_writable_bytes(std::span{slots}));

    // All ranks look at the same slots and come to the same verdict. Whatever happens here, they meet again: until then
    // others look at what this rank's slot points to.
    std::string verdict;
    std::exception_ptr error;
    try {
      verdict = compare(slots);
      if (verdict.empty())
        enqueue(mine.op, [&](cudaStream_t stream) {
          hold_for(slots, &GpuSlot::ready, stream);
          work(slots, stream);
          has_read_.record(stream);
        });
    } catch (...) {
      error = std::current_exception();
    }
    host_.barrier();
    if (error) std::rethrow_exception(error);
    if (!verdict.empty()) throw CommError(verdict);
    enqueue(mine.op, [&](cudaStream_t stream) { hold_for(slots, &GpuSlot::has_read, stream); });
  }

  void hold_for(std::span<const GpuSlot> slots, cudaEvent_t GpuSlot::*event, cudaStream_t stream) const {
    for (int r = 0; r < size(); ++r)
      if (r != rank())
        cuda_check(cudaStreamWaitEvent(stream, slots[index(r)].*event, 0), "waiting for another rank's GPU");
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
  CudaEvent ready_, has_read_;
};

}  // namespace zeropp::detail
#endif
