// SPDX-License-Identifier: Apache-2.0
// A training step's passes as a CUDA graph: from the third time on that they are given the same numbers and addresses
// they are one launch for the host, which then does not hold up small kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include <zeropp/device/device.hpp>
#include <zeropp/layers/loss.hpp>
#include <zeropp/parallel/batch.hpp>
#include <zeropp/parallel/sharding/sharded_options.hpp>
#ifdef ZEROPP_CUDA
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/cuda/graph.hpp>
#endif

namespace zeropp {

/// The arguments of a step's kernels that may differ from step to step.
struct StepKey {
  std::int64_t rows, sequence, micro_batches, labels;
  float loss_scale;
  const void *tokens_at, *labels_at;
  bool operator==(const StepKey&) const = default;

  /// Nothing where the labels are not counted yet: that waits for the device.
  static std::optional<StepKey> of(const Batch& batch, const TrainOptions& options) {
    const auto labels = batch.labels_in_step ? batch.labels_in_step : batch.labels_here;
    if (labels < 0) return {};
    return StepKey{batch.rows(),       batch.sequence(),     options.micro_batches, labels,
                   options.loss_scale, batch.tokens.data(), batch.labels.data()};
  }
};

/// On devices without graphs it does nothing.
template <Device D>
class StepGraph {
 public:
  /// The loss of pass(), which is one program of the device's pool. Without a key it is not captured.
  template <class Pass>
  Loss run(D&, const std::optional<StepKey>&, const Pass& pass) {
    return pass();
  }
  /// Where contexts note that a pass draws random numbers, which differ from step to step.
  bool* draws() { return nullptr; }
  bool captured() const { return false; }
};

#ifdef ZEROPP_CUDA
template <Device D>
requires requires { typename D::Capturing; }
class StepGraph<D> {
 public:
  template <class Pass>
  Loss run(D& device, const std::optional<StepKey>& key, const Pass& pass) {
    if (!key || device.profiles()) return pass();
    const auto* arena = device.pool().arena_base();
    if (key != key_ || arena != arena_) {  // what was captured is of other numbers, or of memory that is gone
      graph_ = {};
      passes_ = 0;
      key_ = key;
    }
    if (passes_ < 2) {  // the pool records the first, products and kernels are chosen and loaded; the second shows all
      draws_ = false;
      auto loss = pass();
      passes_ = draws_ || !device.pool().repeats() ? 0 : passes_ + 1;
      arena_ = device.pool().arena_base();
      return loss;
    }
    last_.settle();  // its place is written anew
    if (!graph_) {
      capture(device, pass);
      if (draws_) {  // it has begun to: it runs as ever from now on
        graph_ = {};
        passes_ = 0;
        return pass();
      }
    }
    device.pool().expect_free("a captured step");
    graph_.launch(device.stream());
    capture_->ended.record(device.stream());
    return last_ = loss_.again();
  }
  bool* draws() { return &draws_; }
  bool captured() const { return static_cast<bool>(graph_); }

 private:
  template <class Pass>
  void capture(D& device, const Pass& pass) {
    capture_ = std::make_shared<CudaCapture>();
    draws_ = false;
    const typename D::Capturing capturing(device, capture_);
    graph_ = CudaGraph::of(device.stream(), [&] { loss_ = pass(); });
  }

  std::optional<StepKey> key_;
  const std::byte* arena_ = nullptr;
  int passes_ = 0;
  bool draws_ = false;
  CudaGraph graph_;
  std::shared_ptr<CudaCapture> capture_;
  Loss loss_, last_;  ///< as captured, never read; of the last launch
};
#endif

}  // namespace zeropp
