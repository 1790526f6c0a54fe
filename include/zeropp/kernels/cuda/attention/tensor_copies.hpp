// SPDX-License-Identifier: Apache-2.0
// Panels of a head copied by Hopper's copy engine (TMA): one thread asks for a panel, a barrier in shared memory counts
// its bytes, and rows beyond the sequence arrive as zeros. The engine's description of the tensor is encoded on the
// host for each call, and is an argument of the kernel. Source: PTX ISA 9.0, 9.7.9.25 and 9.7.13.15; CUDA driver API,
// tensor maps.
#pragma once

#include <cstdint>

#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/attention/parts.hpp>

#ifdef __CUDACC__
#include <cuda.h>
#endif

namespace zeropp::kernels::detail {

#ifdef __CUDACC__

/// Heads [batch, positions, heads, D] in 16 bits, `stride` and `sequence` elements between positions and sequences, to
/// be copied `rows` positions times 64 elements of one head at a time. `data` and strides: multiples of 16 bytes.
/// Throws CudaError.
inline CUtensorMap tensor_map(const void* data, std::int64_t stride, std::int64_t sequence, std::int64_t batch,
                              std::int64_t positions, std::int64_t heads, int head_size, int rows) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
               "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) throw CudaError("this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  using U = cuuint64_t;
  const U sizes[] = {static_cast<U>(head_size), static_cast<U>(heads), static_cast<U>(positions),
                     static_cast<U>(batch)};
  const U strides[] = {static_cast<U>(2 * head_size), static_cast<U>(2 * stride), static_cast<U>(2 * sequence)};
  const cuuint32_t box[] = {64, 1, static_cast<cuuint32_t>(rows), 1}, steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const auto status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(data), sizes, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw CudaError(text("cuTensorMapEncodeTiled returned ", static_cast<int>(status), " for heads of ", head_size,
                         " elements, ", stride, " between positions and ", sequence, " between sequences"));
  return map;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A barrier in shared memory: a phase ends when as many arrivals as it was made for, and all bytes that were
/// announced, are there.
struct PhaseBarrier {
  std::uint64_t state;

  __device__ void make(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals) : "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory");
  }
  /// Arrives, and announces bytes that the copy engine will bring.
  __device__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes)
                 : "memory");
  }
  /// Arrives when the copies that this thread has begun (copy_8) are done.
  __device__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&state)) : "memory");
  }
  /// Waits until the phase of number n (the first is 0) has ended; one that is two behind would not be noticed.
  __device__ void wait(int n) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ended;\n"
        "bra again;\n"
        "ended: }" ::"r"(shared_address(&state)),
        "r"(n & 1)
        : "memory");
  }
};

/// Positions [first, …) of head h of sequence b, elements [column, column + 64).
__device__ inline void copy_panel(void* to, const CUtensorMap& map, int column, int h, int first, int b,
                                  PhaseBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(h), "r"(first), "r"(b), "r"(shared_address(&barrier.state))
      : "memory");
}
/// Orders this thread's accesses to shared memory before those of the copy engine and the tensor cores after the next
/// barrier.
__device__ inline void fence_engines() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// A barrier of `threads` threads of the block, one of 15 beside __syncthreads.
__device__ inline void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#endif
#endif

}  // namespace zeropp::kernels::detail
