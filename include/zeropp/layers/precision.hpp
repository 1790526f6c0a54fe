// SPDX-License-Identifier: Apache-2.0
// Precision as a type: which element type weights, activations and gradients have. Kernels read any of them and compute
// in float (double for Fp64).
#pragma once

#include <concepts>
#include <string_view>

#include <zeropp/base/dtype.hpp>

namespace zeropp {

template <class P>
concept Precision = requires {
  typename P::Weight;
  typename P::Activation;
  typename P::Gradient;
  { P::name } -> std::convertible_to<std::string_view>;
};

/// 16 bytes of training state a parameter: 4 weight, 4 gradient, 8 Adam moments.
struct Fp32 {
  using Weight = float;
  using Activation = float;
  using Gradient = float;
  static constexpr std::string_view name = "fp32";
};

/// bf16 weights and activations over an exact fp32 master (see SplitMaster), gradients in float: 16 bytes a parameter:
/// 2 weight, 2 remainder, 4 gradient, 8 moments.
struct Bf16 {
  using Weight = bf16;
  using Activation = bf16;
  using Gradient = float;
  static constexpr std::string_view name = "bf16";
};

/// As Bf16, with gradients in bf16 too: 14 bytes a parameter, where the ZeRO paper counts 16.
struct Bf16Gradients {
  using Weight = bf16;
  using Activation = bf16;
  using Gradient = bf16;
  static constexpr std::string_view name = "bf16-gradients";
};

/// For checks of gradients against finite differences.
struct Fp64 {
  using Weight = double;
  using Activation = double;
  using Gradient = double;
  static constexpr std::string_view name = "fp64";
};

}  // namespace zeropp
