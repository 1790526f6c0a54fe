// SPDX-License-Identifier: Apache-2.0
// Precision as a type: which element type weights, activations and gradients have, and what is kept of an updated
// weight. Kernels read any of them and compute in float (double for Fp64).
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include <zeropp/base/dtype.hpp>

namespace zeropp {

template <class P>
concept Precision = requires {
  typename P::Weight;
  typename P::Activation;
  typename P::Gradient;
  { P::name } -> std::convertible_to<std::string_view>;
  { P::keeps_master } -> std::convertible_to<bool>;  // beside weights of 16 bits: what their fp32 masters need
  requires !P::keeps_master || has_master<typename P::Weight>;
  requires P::keeps_master || !std::is_same_v<typename P::Weight, f16>;
};

/// Updated bf16 weights of which no master is kept are rounded stochastically: to nearest, a small update would be
/// lost each time.
template <Precision P>
inline constexpr bool rounds_stochastically = std::is_same_v<typename P::Weight, bf16> && !P::keeps_master;

/// The types of a precision; one of your own derives from it and adds a name.
template <class W, class A, class G, bool KeepsMaster>
struct PrecisionOf {
  using Weight = W;
  using Activation = A;
  using Gradient = G;
  static constexpr bool keeps_master = KeepsMaster;
};

/// 16 bytes of training state a parameter: 4 weight, 4 gradient, 8 Adam moments.
struct Fp32 : PrecisionOf<float, float, float, false> {
  static constexpr std::string_view name = "fp32";
};

/// bf16 weights and activations over an exact fp32 master (see SplitMaster), gradients in float: 16 bytes a parameter:
/// 2 weight, 2 remainder, 4 gradient, 8 moments.
struct Bf16 : PrecisionOf<bf16, bf16, float, true> {
  static constexpr std::string_view name = "bf16";
};

/// As Bf16, with gradients in bf16 too: 14 bytes a parameter, where the ZeRO paper counts 16.
struct Bf16Gradients : PrecisionOf<bf16, bf16, bf16, true> {
  static constexpr std::string_view name = "bf16-gradients";
};

/// As Bf16Gradients without a master: 12 bytes a parameter: 2 weight, 2 gradient, 8 moments. Adam's step rounds each
/// weight up or down with the probability that keeps its mean (Gupta et al., "Deep learning with limited numerical
/// precision", arXiv 1502.02551; for bf16 weights Zamirai et al., "Revisiting BFloat16 training", arXiv 2010.06192), by
/// random bits that depend on seed, step, parameter and element alone.
struct Bf16Stochastic : PrecisionOf<bf16, bf16, bf16, false> {
  static constexpr std::string_view name = "bf16-stochastic";
};

/// f16 weights and activations beside an fp32 master, gradients in float: 18 bytes a parameter: 2 weight, 4 master,
/// 4 gradient, 8 moments. Activations' gradients below 2^-24 vanish in f16: train with a LossScaler
/// (train/loss_scale.hpp).
struct Fp16 : PrecisionOf<f16, f16, float, true> {
  static constexpr std::string_view name = "fp16";
};

/// For checks of gradients against finite differences.
struct Fp64 : PrecisionOf<double, double, double, false> {
  static constexpr std::string_view name = "fp64";
};

}  // namespace zeropp
