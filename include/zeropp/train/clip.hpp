// SPDX-License-Identifier: Apache-2.0
// The global norm of the gradients, and the factor that clips them. Partial norms in double are taken over shards, so
// the norm has the same bits at every stage.
#pragma once

#include <zeropp/kernels/gradient_norm.hpp>

namespace zeropp {

/// Clips gradients to `max_norm`, the Euclidean norm over all parameters without their loss scale; 0 measures without
/// clipping. Call after train(). Returns at once where a device computes: norm() waits for the result. A collective.
template <class Model>
ClipResult clip_by_global_norm(Model& model, float max_norm) {
  return model.clip_gradients(max_norm);
}

/// The norm alone. A collective.
template <class Model>
double global_norm(Model& model) {
  return model.clip_gradients(0).norm();
}

}  // namespace zeropp
