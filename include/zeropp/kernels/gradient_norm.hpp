// SPDX-License-Identifier: Apache-2.0
// The norm of all gradients and the factor that clips them. They stay where the device computes: the optimizer reads
// them there, and the host waits only where somebody asks for the numbers.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include <zeropp/base/random.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp {

struct GradientNorm {
  double norm = 0;     ///< of all gradients, over all ranks, before clipping
  float factor = 1;    ///< what FusedAdam multiplies gradients by, beside the inverse of their loss scale
  bool finite = true;  ///< false on every rank if any rank's gradient holds a NaN or infinity: the step is then skipped
  bool agreed = true;  ///< false on every rank if ranks were given different arguments: the step is skipped as well

  /// factor = max_norm / (norm + 1e-6) where the norm exceeds max_norm, as torch.nn.utils.clip_grad_norm_; 1 where
  /// max_norm is 0.
  static constexpr GradientNorm of(double norm, double max_norm) {
    GradientNorm clip{.norm = norm, .finite = norm - norm == 0};
    const double factor = max_norm / (norm + 1e-6);
    if (max_norm > 0 && clip.finite && factor < 1) clip.factor = static_cast<float>(factor);
    return clip;
  }
};

/// A handle to a GradientNorm that may not be known yet. It belongs to a step: read it, or give it to the optimizer,
/// before the device is gone.
class ClipResult {
 public:
  ClipResult() = default;  ///< nothing is clipped
  ClipResult(const GradientNorm& known) : known_(known) {}
  /// `place`, in the device's memory, is written by what is enqueued; `wait` waits for that and returns it.
  ClipResult(std::shared_ptr<const GradientNorm> place, std::function<GradientNorm()> wait)
      : place_(std::move(place)), wait_(std::move(wait)) {}

  /// These wait where a device is still computing. They throw what it has found wrong in its data.
  double norm() const { return value().norm; }
  float factor() const { return value().factor; }
  bool finite() const { return value().finite; }
  GradientNorm value() const {
    const auto norm = wait_ ? wait_() : known_;
    if (!norm.agreed)
      throw CommError(
          "ranks of a model were given different arguments: a norm to clip to, a loss scale, labels of the step, or the "
          "learning rate of the step before; give all ranks the same");
    return norm;
  }

  /// Where the device keeps it; null: the host knew it from the start.
  const GradientNorm* on_device() const { return place_.get(); }

 private:
  GradientNorm known_;
  std::shared_ptr<const GradientNorm> place_;
  std::function<GradientNorm()> wait_;
};

/// A number that each rank makes of its arguments, summed over ranks beside the squares: it shows whether all ranks
/// have made the same of them.
struct Agreement {
  const double* sum = nullptr;  ///< in the device's memory; null: there is one rank
  double expected = 0;          ///< if all ranks agree with this one

  constexpr bool holds() const { return !sum || *sum == expected; }

  /// The number of a rank's arguments, as text: 32 bits, whose sums over up to 2^21 ranks are exact. It is mixed, since
  /// rates in equal steps have hashes in equal steps, and the mean of those is one of them.
  static constexpr double number_of(std::string_view arguments) {
    return static_cast<double>(mixed(hash_of(arguments)) >> 32);
  }
};

namespace kernels {

/// norm = √(Σ squares) / loss_scale, the sum in order. 0 on the dry device.
template <Device D>
ClipResult gradient_norm(D& device, std::span<const double> squares, double loss_scale, double max_norm,
                         const Agreement& agreement = {}) {
  double sum = 0;
  bool agreed = true;
  device.run({.name = "clip", .flops = static_cast<double>(squares.size())}, [&](auto&) {
    for (double one : squares) sum += one;
    agreed = agreement.holds();
  });
  auto norm = GradientNorm::of(std::sqrt(sum) / loss_scale, max_norm);
  norm.finite = norm.finite && agreed;
  norm.agreed = agreed;
  return norm;
}

}  // namespace kernels

}  // namespace zeropp

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/gradient_norm.hpp>
#endif
