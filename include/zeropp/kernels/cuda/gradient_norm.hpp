// SPDX-License-Identifier: Apache-2.0
// kernels/gradient_norm.hpp on a GPU: the numbers arrive in its memory, for the optimizer, and in pinned memory, for
// who asks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/reduce.hpp>
#include <zeropp/kernels/gradient_norm.hpp>

namespace zeropp::kernels {

namespace detail {

struct GradientNormSlot {
  explicit GradientNormSlot(GradientNorm* in_gpu) : place(in_gpu) {}
  GradientNorm* place;
  Pinned<GradientNorm> report;  ///< the same, written by the GPU
  CudaEvent written;
  bool read = false;  ///< by the host: what is found wrong in data later has nothing to do with it
};

/// The slots of a device. One whose handles are gone is used again: work of one stream writes and reads it in order.
class GradientNormSlots {
 public:
  static constexpr std::size_t most = 8;  ///< results that are held at a time; further ones take memory of their own

  template <class D>
  explicit GradientNormSlots(D& device) {
    places_.push_back(device.pool().take_persistent(most * sizeof(GradientNorm), Purpose::buffers));
    if constexpr (!D::dry)  // now: later, memory may be had only after what ranks exchange meanwhile
      while (slots_.size() < most) add();
  }

  template <class D>
  std::shared_ptr<GradientNormSlot> take(D& device) {
    for (auto& slot : slots_)
      if (slot.use_count() == 1) {
        slot->read = false;
        return slot;
      }
    if (slots_.size() % most == 0)
      places_.push_back(device.pool().take_persistent(most * sizeof(GradientNorm), Purpose::buffers));
    return add();
  }

 private:
  const std::shared_ptr<GradientNormSlot>& add() {
    auto* place = reinterpret_cast<GradientNorm*>(places_.back().get()) + slots_.size() % most;
    return slots_.emplace_back(std::make_shared<GradientNormSlot>(place));
  }

  std::vector<Storage> places_;
  std::vector<std::shared_ptr<GradientNormSlot>> slots_;
};

/// Enqueues a sum in order and what follows from it.
void launch_gradient_norm(std::span<const double> squares, double loss_scale, double max_norm,
                          const Agreement& agreement, GradientNorm* place, GradientNorm* report, cudaStream_t stream);

#ifdef __CUDACC__

/// One warp.
static __global__ void __launch_bounds__(32)
    gradient_norm_kernel(const double* squares, std::int64_t count, double loss_scale, double max_norm,
                         const __grid_constant__ Agreement agreement, GradientNorm* place, GradientNorm* report) {
  const double sum = sum_in_order(squares, 0, count);
  if (threadIdx.x != 0) return;
  auto norm = GradientNorm::of(__dsqrt_rn(sum) / loss_scale, max_norm);
  norm.agreed = agreement.holds();
  norm.finite = norm.finite && norm.agreed;
  *place = norm;
  *report = norm;
}

inline void launch_gradient_norm(std::span<const double> squares, double loss_scale, double max_norm,
                                 const Agreement& agreement, GradientNorm* place, GradientNorm* report,
                                 cudaStream_t stream) {
  gradient_norm_kernel<<<1, 32, 0, stream>>>(squares.data(), static_cast<std::int64_t>(squares.size()), loss_scale,
                                             max_norm, agreement, place, report);
}

#endif

}  // namespace detail

/// As the host's; returns at once. `squares` lie in the GPU's memory.
template <CudaDevice D>
ClipResult gradient_norm(D& device, std::span<const double> squares, double loss_scale, double max_norm,
                         const Agreement& agreement = {}) {
  auto& slots = device.template companion<detail::GradientNormSlots>();
  ClipResult result;
  device.run({.name = "clip", .flops = static_cast<double>(squares.size())}, [&](cudaStream_t stream) {
    if constexpr (!D::dry) {
      auto slot = slots.take(device);
      detail::launch_gradient_norm(squares, loss_scale, max_norm, agreement, slot->place, slot->report.get(), stream);
      slot->written.record(stream);
      result = {std::shared_ptr<const GradientNorm>(slot, slot->place), [slot, &device] {
                  if (!slot->read) {
                    slot->written.wait();
                    slot->read = true;
                    device.check();
                  }
                  return *slot->report;
                }};
    }
  });
  return result;
}

}  // namespace zeropp::kernels
