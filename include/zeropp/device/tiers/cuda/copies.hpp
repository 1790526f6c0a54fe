// SPDX-License-Identifier: Apache-2.0
// Copies between a GPU and the host, in one direction: a stream of their own, ordered with the one that computes by
// events. Include it where tiers of the device Cuda are made.
#pragma once

#include <cstddef>
#include <cstring>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tiers/copies.hpp>

namespace zeropp {

/// Page-locked memory of the host, which a GPU copies from and to beside what computes.
class PinnedMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    void* block = nullptr;
    const auto result = cudaHostAlloc(&block, bytes, cudaHostAllocPortable);
    if (result == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      return nullptr;
    }
    cuda_check(result, "cudaHostAlloc");
    if (checked) std::memset(block, 0xff, bytes);
    return static_cast<std::byte*>(block);
  }
  void deallocate(std::byte* block, std::size_t) noexcept override { static_cast<void>(cudaFreeHost(block)); }
};

/// Large pages of the host, page-locked afterwards, for requests of disks, whose rate depends on the pages. Those of
/// cudaHostAlloc are not ours to choose.
class RegisteredMemory final : public Memory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    auto* block = pages_.allocate(bytes);
    if (!block) return nullptr;
    const auto result = cudaHostRegister(block, whole_pages(bytes), cudaHostRegisterPortable);
    if (result == cudaSuccess) return block;
    pages_.deallocate(block, bytes);
    if (result != cudaErrorMemoryAllocation) cuda_check(result, "cudaHostRegister");
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  void deallocate(std::byte* block, std::size_t bytes) noexcept override {
    static_cast<void>(cudaHostUnregister(block));
    pages_.deallocate(block, bytes);
  }

 private:
  PageMemory pages_;
};

namespace detail {

class CopyEvent {
 public:
  void record(void* stream) { event_.record(static_cast<cudaStream_t>(stream)); }
  void hold(void* stream) const { event_.hold(static_cast<cudaStream_t>(stream)); }
  void wait() const { event_.wait(); }
  bool done() const { return event_.done(); }

 private:
  CudaEvent event_{false, true};  // threads of lanes wait for it, as many as a disk has requests
};

template <>
class Copies<Cuda> {
 public:
  static constexpr bool enqueues = true;
  static constexpr bool reaches(Home home) { return home == Home::pinned; }
  static constexpr Home staging = Home::pinned;
  using PinnedMemory = zeropp::PinnedMemory;
  using HostMemory = PageMemory;
  using StagingMemory = RegisteredMemory;
  using Event = CopyEvent;

  explicit Copies(Cuda& device) : device_(device), ordinal_(device.ordinal()), computing_(device.stream()) {}
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;
  ~Copies() { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  void* stream() const { return stream_.get(); }
  void* computing() const { return computing_; }
  void begin() const {
    if (device_.capture())
      throw CudaError(
          "a copy from or to a tier is no part of a graph, and this step is captured as one; train without "
          "ShardedOptions::graph");
  }
  void begin_thread() const { cuda_check(cudaSetDevice(ordinal_), "cudaSetDevice"); }
  void copy(void* to, const void* from, std::size_t bytes) const {
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_.get()), "copying between tiers");
  }

 private:
  Cuda& device_;
  int ordinal_;
  cudaStream_t computing_;
  CudaStream stream_;
};

}  // namespace detail

}  // namespace zeropp
