// SPDX-License-Identifier: Apache-2.0
// The loss over all of a held-out range, the same on every number of ranks up to the order of sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include <zeropp/layers/loss.hpp>
#include <zeropp/parallel/batch.hpp>
#include <zeropp/app/data/loader.hpp>

namespace zeropp {

/// Fills a batch of the loader's shape and of this rank.
inline void fill(Batch& batch, const TokenBatch& from) {
  batch.fill(from.tokens, from.labels);
  batch.first_sample = from.first_sample;
}

/// Nats and labels of at most `batches` batches (0: all), or of those until stop(), which says the same on all ranks. A
/// collective.
template <class Model, class Stop>
Loss evaluate(Model& model, const EvaluationLoader& loader, Batch& batch, std::int64_t batches, Stop&& stop) {
  Loss total;
  total.add(0, 0);
  const auto count = batches ? std::min(batches, loader.batches()) : loader.batches();
  for (std::int64_t i = 0; i < count && !stop(); ++i) {
    fill(batch, loader.at(i));
    const auto loss = model.evaluate(batch);
    total.add(loss.sum(), loss.count());
  }
  return total;
}
template <class Model>
Loss evaluate(Model& model, const EvaluationLoader& loader, Batch& batch, std::int64_t batches = 0) {
  return evaluate(model, loader, batch, batches, [] { return false; });
}

}  // namespace zeropp
