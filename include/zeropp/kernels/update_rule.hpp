// SPDX-License-Identifier: Apache-2.0
// An optimizer of elements as a rule: which slots of state it keeps beside each weight, and how one step changes a
// weight and its slots. Kernels run any rule, clip, put masters together and round; docs/optimizers.md shows how to
// write one.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/kernels/arithmetic.hpp>
#include <zeropp/kernels/gradient_norm.hpp>

namespace zeropp::kernels {

/// One step of an optimizer.
struct UpdateStep {
  float learning_rate = 0;
  std::int64_t number = 1;   ///< of the step, from 1
  float gradient_scale = 1;  ///< clipping, and the inverse of a loss scale
  /// Where the device keeps a factor to clip by, beside that one: if it is not finite, nothing changes.
  const GradientNorm* clip = nullptr;
};

/// A setting of a rule and the range that it must be in: [least, below).
struct RuleSetting {
  std::string_view name;
  float value = 0, least = 0, below = std::numeric_limits<float>::infinity();
};

/// The facts about a parameter that a rule's step is given, in the type C that computes.
template <class C>
struct ElementStep {
  C rate;    ///< the learning rate, times the factor of the parameter's group
  C decay;   ///< what the weight is multiplied by: 1 - rate · weight_decay
  C factor;  ///< of the parameter's group alone
};

/// A rule is an aggregate of its settings with
///   name         in messages and in the names of kernels
///   slots        an array of the names of its states, one or more, as checkpoints name them
///   weight_decay for parameters that ask for it (Parameter::decay)
///   settings()   an array of RuleSetting, the others: checked when an optimizer is made, and compared between ranks
///   operator()(V& weight, V gradient, V&... slots, ElementStep<C> step) const, constexpr: one step, where V is a number
///                or a vector of them: only + - * / and the functions of kernels/arithmetic.hpp.
/// Where coefficients depend on the number of the step, at<C>(UpdateStep) makes the object that is called instead.
template <class R>
concept UpdateRule = std::copyable<R> && requires(const R& rule) {
  { R::name } -> std::convertible_to<std::string_view>;
  { R::slots.size() } -> std::convertible_to<std::size_t>;
  requires R::slots.size() > 0;
  { rule.weight_decay } -> std::convertible_to<float>;
  { rule.settings()[0] } -> std::convertible_to<RuleSetting>;
};

template <UpdateRule R>
inline constexpr std::size_t slot_count = R::slots.size();

/// Whether checkpoints can tell the slots from each other and from what they keep besides.
template <UpdateRule R>
constexpr bool slots_are_named() {
  for (std::size_t i = 0; i < R::slots.size(); ++i) {
    const std::string_view name = R::slots[i];
    if (name.empty() || name.find('/') != name.npos) return false;
    for (std::string_view taken : {"remainder", "master", "first", "second"})
      if (name == taken) return false;
    for (std::size_t k = 0; k < i; ++k)
      if (name == std::string_view(R::slots[k])) return false;
  }
  return true;
}

/// Operations of an element's step, for plans: about ten, unless the rule says.
template <UpdateRule R>
constexpr double update_flops() {
  if constexpr (requires { R::flops; })
    return R::flops;
  else
    return 10;
}

/// Consecutive elements that are updated alike. Where weights are rounded stochastically, element i of the run takes
/// the random number `first` + i of `stream`.
struct UpdateRun {
  Range range;
  float weight_decay = 0;
  float rate = 1;            ///< the learning rate's factor
  std::uint64_t stream = 0;  ///< of the tensor that they belong to
  std::int64_t first = 0;    ///< the first one's index in that tensor, wherever it is cut
};

/// Buffers of one size. `masters` is what is kept of fp32 masters beside bf16 and f16 weights, otherwise it is empty.
template <class Weight, class Gradient, class State, std::size_t Slots>
struct UpdateSpan {
  std::span<Weight> weight;
  std::span<kept_t<Weight>> masters;
  std::span<const Gradient> gradient;
  std::array<std::span<State>, Slots> slots;
};

namespace detail {

/// Bytes that move for an element. A master that is kept whole is read in place of its weight.
template <class W, class G, class M, std::size_t Slots>
inline constexpr double update_bytes = (std::is_same_v<W, f16> ? 1 : 2) * sizeof(W) +
                                       (has_master<W> ? 2 * sizeof(kept_t<W>) : 0) + sizeof(G) + 2 * Slots * sizeof(M);

/// The factor on gradients that every rule's step needs beside its own coefficients, in the compute type.
template <class C>
struct GradientScale {
  C scale;
  explicit GradientScale(const UpdateStep& step) : scale(static_cast<C>(step.gradient_scale)) {}
  /// Takes in what a clip says, if there is one. False: it says that no step is to be done.
  constexpr bool take(const GradientNorm* clip) {
    if (clip) scale *= static_cast<C>(clip->factor);
    return !clip || clip->finite;
  }
};

template <class C>
ElementStep<C> element_step(const UpdateStep& step, const UpdateRun& run) {
  return {static_cast<C>(step.learning_rate) * static_cast<C>(run.rate),
          static_cast<C>(1 - static_cast<double>(step.learning_rate) * static_cast<double>(run.rate) *
                                 static_cast<double>(run.weight_decay)),
          static_cast<C>(run.rate)};
}

/// The object that is called for each element in a step.
template <class C, UpdateRule R>
constexpr auto of_step(const R& rule, const UpdateStep& step) {
  if constexpr (requires { rule.template at<C>(step); })
    return rule.template at<C>(step);
  else
    return rule;
}

/// update(weight, gradient, slots[0], slots[1], ..., step).
template <class U, class V, std::size_t S, class C>
constexpr void run_rule(const U& update, V& weight, V gradient, V (&slots)[S], const ElementStep<C>& step) {
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    update(weight, gradient, slots[I]..., step);
  }(std::make_index_sequence<S>{});
}

}  // namespace detail

}  // namespace zeropp::kernels
