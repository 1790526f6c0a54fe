// SPDX-License-Identifier: Apache-2.0
// The global norm of the gradients, and the factor that clips it. Partial norms in double are taken over shards, so the
// norm has the same bits at every stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include <zeropp/kernels/reduce.hpp>
#include <zeropp/parallel/sharded.hpp>

namespace zeropp {

struct ClipResult {
  double norm = 0;     ///< of all gradients, over all ranks, before clipping
  float factor = 1;    ///< what FusedAdam multiplies gradients by, beside the inverse of their loss scale
  bool finite = true;  ///< false on every rank if any rank's gradient holds a NaN or infinity: the step is then skipped
};

/// Euclidean norm over all parameters, of gradients without their loss scale. Call after train(). A collective.
template <class Model>
double global_norm(Model& model) {
  const auto squares = model.sum_over_gradients(
      [&](auto parts, std::span<double> sums) { kernels::sums_of_squares(model.device(), parts, sums); });
  return std::sqrt(squares) / static_cast<double>(model.loss_scale());
}

/// factor = max_norm / (norm + 1e-6) where the norm exceeds max_norm, as torch.nn.utils.clip_grad_norm_.
/// max_norm 0 measures without clipping. A collective.
template <class Model>
ClipResult clip_by_global_norm(Model& model, float max_norm) {
  if (!(max_norm >= 0))
    throw ConfigError(text("the gradients' norm is clipped to a value of at least 0, got ", max_norm));
  ClipResult result{.norm = global_norm(model)};
  result.finite = std::isfinite(result.norm);
  if (max_norm > 0 && result.finite)
    result.factor = static_cast<float>(std::min(1.0, static_cast<double>(max_norm) / (result.norm + 1e-6)));
  return result;
}

}  // namespace zeropp
