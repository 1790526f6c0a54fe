// SPDX-License-Identifier: Apache-2.0
// Messages between two ranks with GPUs. Sends are buffered, as everywhere: the sender copies into memory of its own and
// goes on, whether or not the receiver has come. Between threads of a process the receiver's GPU reads that memory;
// between processes the message travels through host memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <zeropp/comm/call.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/device/cuda.hpp>

namespace zeropp::detail {

/// A message on its way: a copy of it on the sender's GPU.
struct GpuMessage {
  explicit GpuMessage(std::size_t capacity_) : capacity(capacity_) {
    void* block = nullptr;
    cuda_check(cudaMalloc(&block, capacity), "memory for a message");
    memory = static_cast<std::byte*>(block);
  }
  GpuMessage(const GpuMessage&) = delete;
  ~GpuMessage() { static_cast<void>(cudaFree(memory)); }

  std::size_t capacity;
  std::byte* memory = nullptr;
  DType dtype = DType::u8;
  std::int64_t count = 0;
  CudaEvent filled;                  ///< on the sender's stream
  std::optional<CudaEvent> emptied;  ///< on the receiver's stream; an event records work of its own GPU only
  std::atomic<bool> free{true};      ///< set by the receiver once `emptied` is recorded
};

inline void expect_message(const Comm& host, const Operation& op, int from, DType dtype, std::int64_t count) {
  if (dtype != op.dtype || count != op.count)
    throw CommError(differ_text(host.in_world(host.rank()), call_text(op, host.in_world(from)), host.in_world(from),
                                call_text({0, Collective::send, dtype, count, 0}, host.in_world(host.rank()))));
}

class GpuMessages {
 public:
  void send(const Comm& host, const Operation& op, int to, std::span<const std::byte> data, cudaStream_t stream) {
    const auto message = buffer(data.size());
    if (message->emptied) message->emptied->hold(stream);
    message->dtype = op.dtype;
    message->count = op.count;
    if (!data.empty())
      cuda_check(cudaMemcpyAsync(message->memory, data.data(), data.size(), cudaMemcpyDeviceToDevice, stream),
                 "copying a message");
    message->filled.record(stream);
    message->free.store(false);
    // The receiver takes over one share of the ownership; a message that nobody receives is never freed.
    auto* shared = new std::shared_ptr<GpuMessage>(message);
    host.send(to, std::as_bytes(std::span<std::shared_ptr<GpuMessage>* const>{&shared, 1}));
  }

  /// The next message of rank `from`. Throws CommError unless it holds what `op` asks for.
  std::shared_ptr<GpuMessage> next(const Comm& host, const Operation& op, int from) {
    std::shared_ptr<GpuMessage>* shared = nullptr;
    host.recv(from, std::as_writable_bytes(std::span<std::shared_ptr<GpuMessage>*>{&shared, 1}));
    const std::unique_ptr<std::shared_ptr<GpuMessage>> owner(shared);
    auto message = *owner;
    expect_message(host, op, from, message->dtype, message->count);
    return message;
  }
  void take(GpuMessage& message, std::span<std::byte> data, cudaStream_t stream) {
    message.filled.hold(stream);
    if (!data.empty())
      cuda_check(cudaMemcpyAsync(data.data(), message.memory, data.size(), cudaMemcpyDefault, stream),
                 "copying a message");
    message.emptied.emplace();
    message.emptied->record(stream);
    message.free.store(true);
  }

 private:
  std::shared_ptr<GpuMessage> buffer(std::size_t bytes) {
    std::shared_ptr<GpuMessage>* best = nullptr;
    for (auto& one : buffers_)
      if (one->free.load() && one->capacity >= bytes && (!best || one->capacity < (*best)->capacity)) best = &one;
    if (best) return *best;
    return buffers_.emplace_back(std::make_shared<GpuMessage>(std::max<std::size_t>(bytes, 1)));
  }

  std::vector<std::shared_ptr<GpuMessage>> buffers_;
};

/// Between processes: waits for the device, since the host carries the message.
inline void send_by_host(const Comm& host, Cuda& device, const Operation& op, int to, std::span<const std::byte> data) {
  const std::int64_t header[] = {static_cast<std::int64_t>(op.dtype), op.count};
  std::vector<std::byte> message(data.size());
  device.download(message.data(), data.data(), data.size());
  host.send(to, std::span<const std::int64_t>{header});
  host.send(to, std::span<const std::byte>{message});
}
inline void receive_by_host(const Comm& host, Cuda& device, const Operation& op, int from, std::span<std::byte> data) {
  std::int64_t header[2];
  host.recv(from, std::span<std::int64_t>{header});
  expect_message(host, op, from, static_cast<DType>(header[0]), header[1]);
  std::vector<std::byte> message(data.size());
  host.recv(from, std::span{message});
  device.upload(data.data(), message.data(), message.size());
}

}  // namespace zeropp::detail
