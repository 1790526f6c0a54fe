// SPDX-License-Identifier: Apache-2.0
// A loss that the GPU is still computing. It arrives in pinned memory; who wants the number waits for it, nobody else.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <zeropp/device/cuda/faults.hpp>
#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/loss_sum.hpp>

namespace zeropp::kernels {

namespace detail {
/// Written by the GPU.
struct LossReport {
  LossSum loss;
  std::int64_t bad_place = -1, bad_label = 0, used = 0;  ///< the first label outside the vocabulary, if there is one
};

struct LossSlot {
  Pinned<LossReport> report;
  CudaEvent written;
};
}  // namespace detail

/// A handle; copies are of the same loss. It may outlive its device.
class PendingLoss {
 public:
  /// Known at once: nothing (what the dry device computes).
  PendingLoss() = default;
  /// `written`: after what writes it.
  PendingLoss(std::shared_ptr<detail::LossSlot> slot, std::shared_ptr<CudaEvent> written)
      : slot_(std::move(slot)), written_(std::move(written)) {}

  bool done() const { return !slot_ || written_->done(); }
  /// Blocks the host until the loss is there. Throws DataError for a label outside the vocabulary.
  LossSum wait() const {
    if (!slot_) return {};
    if (!written_->recorded())
      throw CudaError(
          "a loss is asked for while the step that computes it is captured as a graph: read it after train, or "
          "train without ShardedOptions::graph");
    written_->wait();
    const auto& report = *slot_->report;
    if (report.bad_place >= 0) throw error_of({CudaFaults::label, report.bad_label, report.bad_place, report.used});
    return report.loss;
  }

 private:
  std::shared_ptr<detail::LossSlot> slot_;
  std::shared_ptr<CudaEvent> written_;
};

namespace detail {

/// The slots of a device. One whose handles are gone is used again: work of one stream writes it in order.
class LossSlots {
 public:
  template <class D>
  explicit LossSlots(D&) {}

  std::shared_ptr<LossSlot> take() {
    for (auto& slot : slots_)
      if (slot.use_count() == 1) return slot;
    return slots_.emplace_back(std::make_shared<LossSlot>());
  }
  /// The handle, when what writes the slot is enqueued.
  template <class D>
  static PendingLoss written(D& device, const std::shared_ptr<LossSlot>& slot) {
    if (const auto& capture = device.capture()) {
      capture->owned.push_back(slot);  // its runs write there, whoever has the handle
      return {slot, std::shared_ptr<CudaEvent>(capture, &capture->ended)};
    }
    slot->written.record(device.stream());
    return {slot, std::shared_ptr<CudaEvent>(slot, &slot->written)};
  }

 private:
  std::vector<std::shared_ptr<LossSlot>> slots_;
};

}  // namespace detail

}  // namespace zeropp::kernels
