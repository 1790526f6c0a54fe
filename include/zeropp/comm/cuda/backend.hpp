// SPDX-License-Identifier: Apache-2.0
// The common part of the communicators of GPUs: a stream beside the one that computes, events that order the two (the
// rules are in device/pending.hpp), and messages between two ranks.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/call.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/cuda/messages.hpp>
#include <zeropp/device/cuda.hpp>

namespace zeropp::detail {

class GpuBackend : public CommBackend {
 public:
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  const Comm* host() const override { return &host_; }
  std::chrono::nanoseconds limit() const override { return host_.limit(); }

  bool overlaps() const override { return true; }
  bool buffers_sends() const override { return true; }
  std::uint64_t enqueued() const override { return number_; }
  void join(std::uint64_t number) override {
    if (number <= joined_) return;
    // A later operation may have taken the slot: it ends after this one.
    const auto& slot = slots_[number % slots_.size()];
    if (slot.complete) slot.ended.hold(device_.stream());  // what could not be enqueued has thrown
    joined_ = slot.number;
  }
  void join_stream(std::uint64_t number, void* stream) override {
    const auto& slot = slots_[number % slots_.size()];
    if (slot.complete) slot.ended.hold(static_cast<cudaStream_t>(stream));
  }
  void join_host(std::uint64_t number) override { slots_[number % slots_.size()].ended.wait(); }
  bool done(std::uint64_t number) override { return slots_[number % slots_.size()].ended.done(); }

  void send(const Operation& op, int to, std::span<const std::byte> data) override {
    expect_gpu_memory(op, data.data());
    if (!one_process_) return send_by_host(host_, device_, op, to, data);
    enqueue(op, [&](cudaStream_t stream) { messages_.send(host_, op, to, data, stream); });
  }
  void recv(const Operation& op, int from, std::span<std::byte> data) override {
    expect_gpu_memory(op, data.data());
    if (!one_process_) return receive_by_host(host_, device_, op, from, data);
    const auto message = messages_.next(host_, op, from);  // waits on the host until the other rank has enqueued it
    enqueue(op, [&](cudaStream_t stream) { messages_.take(*message, data, stream); });
  }
  /// Returns when all ranks have come and this one's device has done all it was given.
  void barrier(const Operation&) override {
    stream_.wait();
    device_.synchronize();
    host_.barrier();
  }

 protected:
  /// An operation that was enqueued, or is being enqueued.
  struct Slot {
    std::uint64_t number = 0;
    Operation op;
    std::uint64_t mark = 0;  ///< the backend's own
    bool complete = true;    ///< both events are recorded
    bool failed = false;     ///< it could not be enqueued
    CudaEvent begun, ended;
  };
  /// The oldest operation from number `from` on that has not ended. Called by any thread. `from` is left at it.
  struct UnderWay {
    Operation op;
    std::uint64_t mark;
    bool begun;  ///< the GPU has come to it
  };
  std::optional<UnderWay> oldest_under_way(std::uint64_t& from) const {
    const std::lock_guard lock(slots_mutex_);
    for (from = std::max<std::uint64_t>(from, 1); from <= number_; ++from) {
      const Slot& slot = slots_[from % slots_.size()];
      if (slot.number != from || slot.failed || (slot.complete && slot.ended.done())) continue;
      return UnderWay{slot.op, slot.mark, !slot.complete || slot.begun.done()};
    }
    return {};
  }

  GpuBackend(Comm host, Cuda& device, bool one_process)
      : host_(std::move(host)), device_(device), one_process_(one_process), stream_(CudaStream::Priority::high) {}

  /// work(stream) is enqueued after all that computes so far.
  template <class Work>
  void enqueue(const Operation& op, const Work& work, std::uint64_t mark = 0) {
    Slot& slot = next_slot(op, mark);
    try {
      ready_.record(device_.stream());
      ready_.hold(stream_.get());
      slot.begun.record(stream_.get());
      if (device_.profiles())
        device_.profile().begin({.name = name_of(op.kind), .bytes = static_cast<double>(bytes(op.count, op))},
                                stream_.get(), SpanKind::collective);
      work(stream_.get());
      if (device_.profiles()) device_.profile().end(stream_.get());
      slot.ended.record(stream_.get());
    } catch (...) {
      const std::lock_guard lock(slots_mutex_);
      slot.failed = true;
      throw;
    }
    const std::lock_guard lock(slots_mutex_);
    slot.complete = true;
  }

  void expect_gpu_memory(const Operation& op, const void* place) const {
    if (!place) return;
    cudaPointerAttributes found{};
    cuda_check(cudaPointerGetAttributes(&found, place), "cudaPointerGetAttributes");
    if (found.type == cudaMemoryTypeUnregistered)
      throw CommError(text(describe(op),
                           " over GPUs was given memory of the host; give it the GPU's, or call it of "
                           "comm.host()"));
  }
  void expect_gpu_memory(const Operation& op, std::span<const Piece> pieces) const {
    for (const auto& piece : pieces)
      if (piece.count > 0) return expect_gpu_memory(op, piece.whole);
  }
  static std::int64_t bytes(std::int64_t count, const Operation& op) {
    return count * static_cast<std::int64_t>(size_of(op.dtype));
  }
  static void copy(void* to, const void* from, std::int64_t count, cudaStream_t stream) {
    if (to != from && count > 0)
      cuda_check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count), cudaMemcpyDefault, stream),
                 "copying between GPUs");
  }

  Comm host_;
  Cuda& device_;
  const bool one_process_;
  CudaStream stream_;

 private:
  /// The place of the operation that begins now. So many may be under way; then the host waits for the oldest.
  Slot& next_slot(const Operation& op, std::uint64_t mark) {
    Slot& slot = slots_[(number_ + 1) % slots_.size()];
    if (slot.number && slot.complete) slot.ended.wait();
    const std::lock_guard lock(slots_mutex_);
    slot.number = ++number_;
    slot.op = op;
    slot.mark = mark;
    slot.complete = slot.failed = false;
    return slot;
  }

  CudaEvent ready_;
  mutable std::mutex slots_mutex_;  // the rank's thread writes, a thread that watches it reads
  std::array<Slot, 256> slots_;
  std::uint64_t number_ = 0, joined_ = 0;
  GpuMessages messages_;
};

/// One rank: what is left of collectives are copies, in the order of computing.
class OneGpuBackend final : public CommBackend {
 public:
  OneGpuBackend(Comm host, Cuda& device) : host_(std::move(host)), device_(device) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string_view name() const override { return "one GPU"; }
  bool buffers_sends() const override { return true; }
  const Comm* host() const override { return &host_; }
  std::chrono::nanoseconds limit() const override { return host_.limit(); }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    for (const auto& piece : pieces) copy(op, piece.part, piece.whole, piece.count);
  }
  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    for (const auto& piece : pieces) copy(op, piece.whole, piece.part, piece.count);
  }
  void broadcast(const Operation&, std::span<std::byte>) override {}
  void all_to_all(const Operation&, std::span<const std::byte> in, std::span<const std::int64_t>,
                  std::span<std::byte> out, std::span<const std::int64_t>) override {
    copy({.dtype = DType::u8}, out.data(), in.data(), static_cast<std::int64_t>(in.size()));
  }
  void send(const Operation& op, int, std::span<const std::byte>) override { nobody(op); }
  void recv(const Operation& op, int, std::span<std::byte>) override { nobody(op); }
  void barrier(const Operation&) override { device_.synchronize(); }
  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int>) override {
    return std::make_shared<OneGpuBackend>(host_, device_);
  }

 private:
  void copy(const Operation& op, void* to, const void* from, std::int64_t count) {
    if (to != from && count > 0)
      cuda_check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * size_of(op.dtype),
                                 cudaMemcpyDeviceToDevice, device_.stream()),
                 "copying on the GPU");
  }
  [[noreturn]] static void nobody(const Operation& op) {
    throw CommError(text(describe(op), " in a group of one rank"));
  }

  Comm host_;
  Cuda& device_;
};

}  // namespace zeropp::detail
