// SPDX-License-Identifier: Apache-2.0
// Where and how a layer runs: device, precision, randomness, the labels of the batch. Containers call their children
// through it, so a wrapper can stand in between by deriving from it (see parallel/sharding/sharded_context.hpp).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/into.hpp>
#include <zeropp/layers/checks.hpp>
#include <zeropp/layers/precision.hpp>
#include <zeropp/layers/run.hpp>
#include <zeropp/layers/run_state.hpp>
#include <zeropp/layers/visit.hpp>

namespace zeropp {

namespace detail {
[[noreturn]] inline void refuse_absent(const Parameter& p) {
  throw Error(text("parameter ", p.name, " is not in memory: a layer may touch its parameters only inside its own ",
                   "forward and backward, and gradients only in backward"));
}
}  // namespace detail

template <Device Device_, Precision Precision_>
class Context : public RunState {
 public:
  using Device = Device_;
  using Precision = Precision_;
  using Weight = typename Precision::Weight;
  using Activation = typename Precision::Activation;
  using Gradient = typename Precision::Gradient;

  explicit Context(Device& on, RunState run = {}) : RunState(std::move(run)), device(on) {}

  Device& device;

  bool training() const { return mode == Mode::training; }

  /// A fresh tensor of activations, or of another element type; its contents are undefined.
  template <int Rank, class T = Activation>
  Tensor<T, Rank> make(Extents<Rank> shape, Purpose purpose = Purpose::activations) {
    return {device.pool(), shape, purpose};
  }

  /// A fresh tensor of activations with the shape of another.
  template <class T, int Rank>
  Tensor<Activation, Rank> make_like(const Tensor<T, Rank>& other) {
    return {device.pool(), other.shape()};
  }

  /// The value that a layer hands to its backward: in evaluation nothing, so that it dies at once.
  template <class T>
  T save(T value) const {
    return training() ? std::move(value) : T{};
  }

  const Weight* value(const Parameter& p) const { return static_cast<const Weight*>(resident(p, p.value)); }
  /// Layers add to it.
  Gradient* gradient(Parameter& p) {
    auto* at = static_cast<Gradient*>(resident(p, p.gradient));
    if (std::exchange(p.gradient_unset, false))
      kernels::fill(device, std::span<Gradient>{at, static_cast<std::size_t>(p.size())}, Gradient{});
    return at;
  }
  /// Tells a kernel whether it overwrites the gradients of `parameters` or adds to them. A layer calls it once for each
  /// use, before gradient(). The first use overwrites, so that nobody writes and reads zeros.
  template <std::same_as<Parameter>... Ps>
  kernels::Into into(Ps&... parameters) {
    if (!(parameters.gradient_unset && ...)) return kernels::Into::add;
    ((parameters.gradient_unset = false), ...);
    return kernels::Into::overwrite;
  }

  /// The half of a backward that gives gradients of weights: `work(context)` runs at once, or later where a schedule
  /// splits backward in two. It holds copies of the handles that it reads, and asks the context it is given for
  /// gradients. A layer that uses it for all its gradients says so (SplitsBackward).
  template <class F>
  void weight_gradients(F work) {
    if (postponed_)
      postponed_->push_back(std::move(work));
    else
      work(*this);
  }
  bool postpones() const { return postponed_ != nullptr; }
  using PostponedWork = std::vector<std::function<void(Context&)>>;
  /// From now on such work is kept in a list; null: it runs at once.
  void postpone(PostponedWork* list) { postponed_ = list; }

  /// Random numbers of this step for the layer called `layer`; index them by the element's place in the whole batch.
  Random random(RandomPurpose purpose, std::uint64_t layer) const {
    if (draws) *draws = true;
    return {seed, purpose, layer, static_cast<std::uint64_t>(step)};
  }

  // Inputs come by value and are moved along, so that an activation dies as soon as nobody saved it.
  template <class L, class X>
  auto forward(L& child, X x) {
    return run_forward(*this, child, std::move(x));
  }
  template <class L, class D, class S>
  auto backward(L& child, D dy, S saved) {
    return run_backward(*this, child, std::move(dy), std::move(saved));
  }
  /// forward, with the output added onto `onto`: in the child's own operation where it offers that.
  template <class L, class X, class T>
  auto forward_onto(L& child, X x, T onto) {
    if constexpr (detail::is_refused<X> || detail::is_refused<T>) {
      return Forward{detail::Refused{}, detail::Refused{}};
    } else if constexpr (AddsOutputOnto<L>) {
      return child.forward_onto(*this, std::move(x), std::move(onto));
    } else {
      auto out = forward(child, std::move(x));
      if constexpr (!detail::is_refused<decltype(out.output)>) out.output = sum(std::move(out.output), std::move(onto));
      return out;
    }
  }
  /// backward, with the gradient of the input added onto `onto`.
  template <class L, class D, class S, class T>
  auto backward_onto(L& child, D dy, S saved, T onto) {
    if constexpr (detail::is_refused<D> || detail::is_refused<S>)
      return detail::Refused{};
    else if constexpr (AddsGradientOnto<L>)
      return child.backward_onto(*this, std::move(dy), std::move(saved), std::move(onto));
    else
      return sum(backward(child, std::move(dy), std::move(saved)), std::move(onto));
  }
  detail::Refused sum(detail::Refused, const auto&) { return {}; }
  /// a + b, in the memory of one of them where nobody else sees it.
  template <class T, int Rank>
  Tensor<T, Rank> sum(Tensor<T, Rank> a, Tensor<T, Rank> b) {
    detail::expect_addable(a.shape(), b.shape());
    auto out = a.unique() ? a : b.unique() ? b : make_like(a);
    kernels::add(device, a.span(), b.span(), out.span());
    return out;
  }
  /// forward and backward of a child that is one unit even if it is a container: what Repeat calls.
  template <class L, class X>
  auto forward_unit(L& child, X x) {
    return run_forward(*this, child, std::move(x));
  }
  template <class L, class D, class S>
  auto backward_unit(L& child, D dy, S saved) {
    return run_backward(*this, child, std::move(dy), std::move(saved));
  }

 private:
  static void* resident(const Parameter& p, void* place) {
    if (!place && p.size() > 0) detail::refuse_absent(p);
    return place;
  }

  PostponedWork* postponed_ = nullptr;
};

}  // namespace zeropp
