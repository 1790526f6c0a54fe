// SPDX-License-Identifier: Apache-2.0
// A product split by its outputs (columns of y, axis 0 of the weight) or by its inputs (rows of Wᵀ, axis 1). After
// columns comes rows: together they exchange once a direction.
#pragma once

#include <utility>
#include <vector>

#include <zeropp/kernels/embedding.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/parallel/tensor/group.hpp>
#include <zeropp/parallel/tensor/slice.hpp>

namespace zeropp {

namespace detail {
/// The outputs of a Linear that lie in some ranges.
inline Linear outputs_of(const Linear& whole, const std::vector<Range>& ranges, const Comm& group) {
  std::vector<Parameter> bias;
  for (auto& b : whole.bias) bias.push_back(cut(b, 0, ranges, group));
  return Linear{cut(whole.weight, 0, ranges, group), std::move(bias)};
}
/// The bias of an output that ranks sum. Each of them holds it, and adds it after the sum.
struct BiasAfterSum {
  static constexpr LayerTraits traits{.shares_context = true, .splits_backward = true};

  std::vector<Parameter> bias;  ///< one or none

  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> all;
    for (auto& b : bias) all.push_back(&b);
    return all;
  }
  template <class C, class T, int R>
  Tensor<T, R> forward(C& ctx, Tensor<T, R> y) const {
    if (!bias.empty()) kernels::add_rows(ctx.device, ctx.value(bias[0]), 1, y.data(), y.rows(), y.extent(-1));
    return y;
  }
  template <class C, class T, int R>
  void backward(C& ctx, const Tensor<T, R>& dy) {
    if (bias.empty()) return;
    ctx.weight_gradients([this, dy](auto& on) {
      const auto into = on.into(bias[0]);
      kernels::column_sum(on.device, dy.data(), on.gradient(bias[0]), dy.rows(), dy.extent(-1), into);
    });
  }
};
inline Range share_of_outputs(const Linear& whole, const TensorGroup& group) {
  return share_of(whole.out(), group.rank(), group.size(), whole.weight.name, "an output width of ");
}
}  // namespace detail

/// Input of all positions and channels, or of this rank's positions; output [B, T, out / ranks].
template <>
class TensorParallel<Linear, SplitBy::columns> {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .splits_backward = true};

  /// Even parts of the outputs.
  TensorParallel(const TensorOptions& o, const Linear& whole)
      : TensorParallel(o, whole, {detail::share_of_outputs(whole, TensorGroup{o})}) {}
  /// These outputs, side by side.
  TensorParallel(const TensorOptions& o, const Linear& whole, const std::vector<Range>& outputs)
      : part(detail::outputs_of(whole, outputs, o.comm)), group_(o) {}

  Linear part;

  std::vector<Parameter*> parameters() { return part.parameters(); }

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto saved = ctx.save(x);  // this rank's positions; the others come again in backward
    auto y = std::move(ctx.forward(part, group_.whole(ctx, std::move(x))).output);
    return Forward{std::move(y), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Tensor<T, R> x) {
    x = group_.whole(ctx, std::move(x));
    return group_.sum(ctx, ctx.backward(part, std::move(dy), std::move(x)));
  }

 private:
  TensorGroup group_;
};

/// Input [B, T, in / ranks]; output summed over ranks, to all of them or each its positions. The bias is added once,
/// after the sum.
template <>
class TensorParallel<Linear, SplitBy::rows> {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .splits_backward = true};

  TensorParallel(const TensorOptions& o, const Linear& whole) : part(whole), group_(o) {
    const auto inputs = share_of(whole.in(), group_.rank(), group_.size(), whole.weight.name, "an input width of ");
    if (group_.size() == 1) return;
    part = Linear{cut(whole.weight, 1, {inputs}, o.comm)};
    after.bias = whole.bias;
    for (auto& b : after.bias) group_.replicate(b);
  }

  Linear part;
  detail::BiasAfterSum after;  ///< none where there is one rank: then `part` has it

  std::vector<Parameter*> parameters() {
    auto all = part.parameters();
    for (auto* b : after.parameters()) all.push_back(b);
    return all;
  }

  template <class C, class T, int R>
  auto forward(C& ctx, Tensor<T, R> x) {
    auto [partial, saved] = ctx.forward(part, std::move(x));
    return Forward{after.forward(ctx, group_.sum(ctx, std::move(partial))), std::move(saved)};
  }
  template <class C, class T, int R>
  auto backward(C& ctx, Tensor<T, R> dy, Tensor<T, R> x) {
    after.backward(ctx, dy);
    return ctx.backward(part, group_.whole(ctx, std::move(dy)), std::move(x));
  }

 private:
  TensorGroup group_;
};

}  // namespace zeropp
