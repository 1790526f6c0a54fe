// SPDX-License-Identifier: Apache-2.0
// The global norm of the gradients, and the factor that clips them. Partial norms in double are taken over shards, so
// the norm has the same bits at every stage.
#pragma once

#include <span>

#include <zeropp/kernels/clip.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/parallel/gradient_sums.hpp>
#include <zeropp/parallel/sharded.hpp>

namespace zeropp {

/// Of the Euclidean norm over all parameters, of gradients without their loss scale; max_norm 0 measures without
/// clipping. Call after train(). Returns at once where a device computes: what reads the result waits. A collective.
template <class Model>
ClipResult clip_by_global_norm(Model& model, float max_norm) {
  if (!(max_norm >= 0))
    throw ConfigError(text("the gradients' norm is clipped to a value of at least 0, got ", max_norm));
  auto& device = model.device();
  return over_gradients(
      model, [&](auto parts, auto places, auto sums) { kernels::sums_of_squares(device, parts, places, sums); },
      [&](auto squares) {
        return kernels::clip(device, squares, static_cast<double>(model.loss_scale()), static_cast<double>(max_norm));
      });
}

/// The norm alone. A collective.
template <class Model>
double global_norm(Model& model) {
  return clip_by_global_norm(model, 0).norm();
}

}  // namespace zeropp
