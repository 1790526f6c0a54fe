// SPDX-License-Identifier: Apache-2.0
// A rank's batch cut by rows into the passes of a step.
#pragma once

#include <cstdint>

#include <zeropp/layers/context.hpp>
#include <zeropp/parallel/batch.hpp>

namespace zeropp {

class MicroBatches {
 public:
  /// `run` is what the micro-batches have in common; sequences may be fewer than micro-batches, some are then empty.
  MicroBatches(Batch batch, RunState run, std::int64_t count)
      : batch_(std::move(batch)), run_(std::move(run)), count_(count) {}

  std::int64_t count() const { return count_; }
  std::int64_t sequence() const { return batch_.sequence(); }
  std::int64_t rows(std::int64_t m) const { return begin(m + 1) - begin(m); }
  Tensor<std::int32_t, 2> tokens(std::int64_t m) const { return batch_.tokens.slice(begin(m), begin(m + 1)); }
  RunState run(std::int64_t m) const {
    auto run = run_;
    if (batch_.labels.size() > 0) run.labels = batch_.labels.slice(begin(m), begin(m + 1));
    run.first_sample = batch_.first_sample + begin(m);
    return run;
  }

 private:
  std::int64_t begin(std::int64_t m) const { return batch_.rows() * m / count_; }

  Batch batch_;
  RunState run_;
  std::int64_t count_;
};

}  // namespace zeropp
