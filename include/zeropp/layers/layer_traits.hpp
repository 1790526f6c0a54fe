// SPDX-License-Identifier: Apache-2.0
// The facts that a layer tells the engine, in one aggregate: a misspelt trait does not compile. The defaults are
// right for any layer; each trait that holds lets the engine do more with it.
//
//   struct Scale {
//     static constexpr LayerTraits traits{.per_position = true};
#pragma once

#include <type_traits>

namespace zeropp {

/// Names a layer type within its own traits, for what must not hold for types that derive from it.
template <class L>
inline constexpr char this_layer = 0;

struct LayerTraits {
  /// Only calls its children: `Sharded` looks through it for units. Sequential, Repeat, PipelineStage.
  bool container = false;
  /// A container each of whose children is one unit, containers among them too. Repeat.
  bool children_are_units = false;
  /// The output at a place of the sequence depends on the input at that place alone, and not on which place it is:
  /// ranks may share the sequence without the layer's knowing.
  bool per_position = false;
  /// Right, together with right children, where context ranks share the sequence: passes positions on alone, or asks
  /// `ctx.context_shard` for them.
  bool shares_context = false;
  /// Its backward leaves all work for gradients of weights to ctx.weight_gradients(), so that a schedule may run that
  /// later.
  bool splits_backward = false;
  /// Goes around a whole model and not into it. Sharded, PipelineStage.
  bool around_model = false;
  /// A rank's stage of a pipeline, which a schedule runs. PipelineStage.
  bool pipelined = false;
  /// `&this_layer<L>` in L: it can add its output onto another tensor in the operation that computes it,
  /// forward_onto(ctx, x, onto). A layer derived from L, whose forward may be another, does not inherit this.
  const char* adds_output_onto = nullptr;
  /// The same for the gradient of its input: backward_onto(ctx, dy, saved, onto).
  const char* adds_gradient_onto = nullptr;
};

namespace detail {
template <class L>
constexpr LayerTraits find_traits() {
  if constexpr (requires { L::traits; }) {
    constexpr bool known = std::is_same_v<std::remove_cvref_t<decltype(L::traits)>, LayerTraits>;
    static_assert(known, "a layer's traits are `static constexpr LayerTraits traits{...}`");
    if constexpr (known) return L::traits;
  }
  return {};
}
}  // namespace detail

/// The traits of a layer type; the defaults where it declares none.
template <class L>
inline constexpr LayerTraits traits_of = detail::find_traits<L>();

template <class L>
concept Container = traits_of<L>
.container;
template <class L>
concept ContainerOfUnits = traits_of<L>
.container&& traits_of<L>.children_are_units;
template <class L>
concept PerPosition = traits_of<L>
.per_position;
template <class L>
concept SharesContext = traits_of<L>
.shares_context;
template <class L>
concept SplitsBackward = traits_of<L>
.splits_backward;
template <class L>
concept Pipelined = traits_of<L>
.pipelined;
template <class L>
concept AddsOutputOnto = traits_of<L>
.adds_output_onto == &this_layer<L>;
template <class L>
concept AddsGradientOnto = traits_of<L>
.adds_gradient_onto == &this_layer<L>;

}  // namespace zeropp
