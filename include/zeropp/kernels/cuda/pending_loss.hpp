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
  explicit LossSlot(std::shared_ptr<CudaFaults> of_device) : faults(std::move(of_device)) {}
  Pinned<LossReport> report;
  std::shared_ptr<CudaFaults> faults;  ///< where a label outside the vocabulary is noted too
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
    if (report.bad_place >= 0) {
      if (slot_->faults->kind == CudaFaults::label) slot_->faults->kind = CudaFaults::none;  // it is said here
      throw DataError(text("label ", report.bad_label, " at place ", report.bad_place,
                           " of the batch is outside the vocabulary of ", report.used,
                           "; were the data made with another tokenizer?"));
    }
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
  explicit LossSlots(D& device) : faults_(device.shared_faults()) {}

  std::shared_ptr<LossSlot> take() {
    for (auto& slot : slots_)
      if (slot.use_count() == 1) return slot;
    return slots_.emplace_back(std::make_shared<LossSlot>(faults_));
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
  std::shared_ptr<CudaFaults> faults_;
  std::vector<std::shared_ptr<LossSlot>> slots_;
};

}  // namespace detail

}  // namespace zeropp::kernels
