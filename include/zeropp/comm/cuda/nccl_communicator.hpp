// SPDX-License-Identifier: Apache-2.0
// NCCL, checked: a communicator as an owner that is aborted where it cannot be destroyed, and the group as a guard,
// without which no collective can be called.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>

namespace zeropp::detail {

/// Throws CommError unless `result` is success. `what` is what was asked for.
inline void nccl_check(ncclResult_t result, std::string_view what, ncclComm_t comm = nullptr) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* last = ncclGetLastError(comm);
  throw CommError(
      text(what, ": NCCL says ", ncclGetErrorString(result), last && *last ? text(" (", last, ")") : std::string{},
           result == ncclUnhandledCudaError || result == ncclSystemError ? "; NCCL_DEBUG=WARN makes it say more" : ""));
}

/// The type in which NCCL sums. Throws CommError where NCCL can't.
inline ncclDataType_t nccl_sum_type(DType dtype) {
  switch (dtype) {
    case DType::f64: return ncclFloat64;
    case DType::f32: return ncclFloat32;
    case DType::bf16: return ncclBfloat16;
    case DType::f16: return ncclFloat16;
    case DType::i64: return ncclInt64;
    case DType::i32: return ncclInt32;
    case DType::u8: return ncclUint8;
    case DType::i16:
    case DType::u16: break;
  }
  throw CommError(text("NCCL does not sum ", name_of(dtype), "; convert to int32, or sum on the host"));
}

class NcclCommunicator {
 public:
  /// Waits for all ranks of the group to come with the same id.
  NcclCommunicator(const ncclUniqueId& id, int rank, int size) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    nccl_check(ncclCommInitRankConfig(&comm_, size, id, rank, &config),
               text("joining ", size, " ranks by NCCL as rank ", rank));
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  ~NcclCommunicator() {
    if (comm_) ncclCommDestroy(comm_);
  }

  /// One id for all ranks of a group, made by one of them. NVLink multicast stays off.
  static ncclUniqueId make_id() {
    forbid_multicast();
    ncclUniqueId id;
    nccl_check(ncclGetUniqueId(&id), "an id for the ranks");
    return id;
  }
  static void forbid_multicast() {
    static const bool once = setenv("NCCL_NVLS_ENABLE", "0", 1) == 0;
    static_cast<void>(once);
  }

  /// The error since the last call, in the background; empty without one.
  std::string asynchronous_error() {
    const std::lock_guard lock(handle_);
    if (!comm_) return {};
    ncclResult_t state = ncclSuccess;
    const auto result = ncclCommGetAsyncError(comm_, &state);
    const auto bad = result != ncclSuccess ? result : state;
    if (bad == ncclSuccess || bad == ncclInProgress) return {};
    const char* last = ncclGetLastError(comm_);
    return text("NCCL says ", ncclGetErrorString(bad), last && *last ? text(" (", last, ")") : std::string{});
  }

  /// Ends what runs on the GPU and what waits on the host. Called by any thread, once or more often.
  void abort() noexcept {
    aborted_.store(true);
    // A call that is under way ends with an error because of the abort, so it must not hold it up.
    if (const auto comm = handle(); comm) ncclCommAbort(comm);
  }
  bool aborted() const { return aborted_.load(); }

  /// Collectives between its begin and end() are one operation. The handle that they need is had from a group only.
  class Group {
   public:
    explicit Group(NcclCommunicator& comm) : comm_(comm), use_(comm.use_) {
      if (comm.aborted()) throw CommError("this communicator was aborted");
      nccl_check(ncclGroupStart(), "ncclGroupStart");
      open_ = true;
    }
    Group(const Group&) = delete;
    ~Group() {
      if (open_) ncclGroupEnd();
    }
    void end() {
      open_ = false;
      nccl_check(ncclGroupEnd(), "enqueueing on the GPU", get());
    }
    ncclComm_t get() const { return comm_.comm_; }

   private:
    NcclCommunicator& comm_;
    std::unique_lock<std::timed_mutex> use_;
    bool open_ = false;
  };

 private:
  /// The handle, to be had once: nobody uses it from then on.
  ncclComm_t handle() noexcept {
    std::unique_lock use(use_, std::chrono::seconds(1));
    const std::lock_guard lock(handle_);
    return std::exchange(comm_, nullptr);
  }

  ncclComm_t comm_ = nullptr;
  std::timed_mutex use_;  ///< held while the rank's thread is in NCCL, and waited for by an abort for a second
  std::mutex handle_;
  std::atomic<bool> aborted_{false};
};

}  // namespace zeropp::detail
