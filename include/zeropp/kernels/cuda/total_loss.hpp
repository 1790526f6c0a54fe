// SPDX-License-Identifier: Apache-2.0
// The last step of a cross entropy on a GPU: losses of rows become one number, labels are counted and checked.
#pragma once

#include <cstdint>

#include <zeropp/device/cuda/faults.hpp>
#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/pending_loss.hpp>

namespace zeropp::kernels::detail {

/// Adds up n losses, if there are any, in an order of their own; counts the labels that count; notes the first one
/// beyond `used`. `report` may be null.
void launch_total_loss(const double* losses, const std::int32_t* labels, std::int64_t n, std::int64_t used,
                       LossReport* report, CudaFaults* faults, cudaStream_t stream);

#ifdef __CUDACC__

/// One block of 1024.
static __global__ void __launch_bounds__(1024)
    total_loss(const double* losses, const std::int32_t* labels, std::int64_t n, std::int64_t used, LossReport* report,
               CudaFaults* faults) {
  __shared__ double sums[1024];
  __shared__ std::int64_t counts[1024], bad[1024];
  const auto me = threadIdx.x;
  double sum = 0;
  std::int64_t count = 0, first_bad = n;
#pragma unroll 8
  for (std::int64_t i = me; i < n; i += 1024) {
    const std::int64_t label = labels[i];
    if (losses) sum += losses[i];
    count += label >= 0 && label < used;
    first_bad = label >= used && i < first_bad ? i : first_bad;
  }
  sums[me] = sum, counts[me] = count, bad[me] = first_bad;
  for (unsigned half = 512; half > 0; half /= 2) {
    __syncthreads();
    if (me < half) {
      sums[me] += sums[me + half];
      counts[me] += counts[me + half];
      bad[me] = min(bad[me], bad[me + half]);
    }
  }
  if (me != 0) return;
  const bool fault = bad[0] < n;
  if (report) {
    report->loss.sum = sums[0];
    report->loss.count = counts[0];
    report->bad_place = fault ? bad[0] : -1;
    report->bad_label = fault ? labels[bad[0]] : 0;
    report->used = used;
  }
  if (fault) {
    faults->value = labels[bad[0]], faults->place = bad[0], faults->limit = used;
    __threadfence_system();
    faults->kind = CudaFaults::label;
  }
}

inline void launch_total_loss(const double* losses, const std::int32_t* labels, std::int64_t n, std::int64_t used,
                              LossReport* report, CudaFaults* faults, cudaStream_t stream) {
  total_loss<<<1, 1024, 0, stream>>>(losses, labels, n, used, report, faults);
}

#endif

}  // namespace zeropp::kernels::detail
