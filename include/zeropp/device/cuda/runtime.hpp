// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime, checked: every call's result becomes an error that names the call; streams, events and pinned
// memory as owners that never throw on their way out and tolerate a runtime that is shutting down.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// A GPU that refuses, fails, or is not there.
struct CudaError : Error {
  explicit CudaError(const std::string& sentence, Where where = Where::here()) : Error(sentence, where) {}
};

/// Throws CudaError unless `result` is success. `what` is what was asked: "cudaStreamCreate", "the kernel adam".
inline void cuda_check(cudaError_t result, std::string_view what, Where where = Where::here()) {
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // said here: who goes on does not find it once more
  throw CudaError(text(what, " failed: ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")"), where);
}

/// Number of GPUs that this process sees; 0 where there is no driver.
inline int cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

/// A moment in a stream that others can wait for. Does not measure time unless asked to. The host polls in wait(), or
/// `sleeps`: some microseconds later, and its processor is free meanwhile.
class CudaEvent {
 public:
  explicit CudaEvent(bool timed = false, bool sleeps = false) {
    cuda_check(cudaEventCreateWithFlags(&event_, (timed ? cudaEventDefault : cudaEventDisableTiming) |
                                                     (sleeps ? cudaEventBlockingSync : cudaEventDefault)),
               "cudaEventCreate");
  }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)), recorded_(other.recorded_) {}
  CudaEvent& operator=(CudaEvent&&) = delete;
  ~CudaEvent() {
    if (event_) cudaEventDestroy(event_);
  }

  cudaEvent_t get() const { return event_; }
  void record(cudaStream_t stream) {
    cuda_check(cudaEventRecord(event_, stream), "cudaEventRecord");
    recorded_ = true;
  }
  bool recorded() const { return recorded_; }  ///< ever
  /// Work enqueued on `stream` from now on runs after this event. Does not block the host.
  void hold(cudaStream_t stream) const { cuda_check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
  /// Blocks the host.
  void wait() const { cuda_check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  bool done() const {
    const auto result = cudaEventQuery(event_);
    if (result == cudaErrorNotReady) return false;
    cuda_check(result, "cudaEventQuery");
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};

/// An ordered queue of work on the current GPU.
class CudaStream {
 public:
  enum class Priority { normal, high };
  explicit CudaStream(Priority priority = Priority::normal) {
    int least = 0, greatest = 0;
    cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    cuda_check(
        cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority == Priority::high ? greatest : least),
        "cudaStreamCreate");
  }
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&&) = delete;
  ~CudaStream() {
    if (stream_) cudaStreamDestroy(stream_);
  }

  cudaStream_t get() const { return stream_; }
  /// Blocks the host until all that is enqueued has run.
  void wait() const { cuda_check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Page-locked host memory for one T that the GPU can write too.
template <class T>
class Pinned {
 public:
  Pinned() {
    void* place = nullptr;
    cuda_check(cudaHostAlloc(&place, sizeof(T), cudaHostAllocMapped | cudaHostAllocPortable), "cudaHostAlloc");
    value_ = new (place) T{};
  }
  Pinned(Pinned&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Pinned& operator=(Pinned&&) = delete;
  ~Pinned() {
    if (value_) cudaFreeHost(value_);
  }

  T& operator*() const { return *value_; }
  T* operator->() const { return value_; }
  T* get() const { return value_; }

 private:
  T* value_ = nullptr;
};

}  // namespace zeropp
