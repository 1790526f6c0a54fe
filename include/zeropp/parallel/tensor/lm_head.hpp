// SPDX-License-Identifier: Apache-2.0
// The head: ranks share the vocabulary, and of each row of logits exchange three numbers. The loss is the same number
// on every rank. Logits that are asked for are gathered, those rows only.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include <zeropp/kernels/cross_entropy_split.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/parallel/tensor/group.hpp>
#include <zeropp/parallel/tensor/slice.hpp>

namespace zeropp {

template <>
class TensorParallel<LmHead> {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  TensorParallel(const TensorOptions& o, LmHead whole)
      : group_(o),
        part_{share_of(whole.vocabulary(), o.comm.rank(), o.comm.size(), whole.weight.name, "a vocabulary of "),
              whole.used(), o.comm.rank(), o.comm.size()},
        head_(std::move(whole)) {
    head_.weight = cut(std::move(head_.weight), 0, {part_.rows}, o.comm);
  }

  auto parameters() { return head_.parameters(); }

  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    using Saved = LmHead::Saved<T>;
    if (group_.size() == 1) return ctx.forward(head_, std::move(x));
    detail::expect_width(x, head_.width(), head_.weight.name);
    const auto rows = x.rows() * group_.sequence_shard().parts;
    Loss loss;
    if (ctx.logits) {
      head_.check(*ctx.logits, rows);
      gather_logits(ctx, *ctx.logits, group_.whole(ctx, std::move(x)));
      loss.add(0, 0);
      return Forward{loss, Saved{}};
    }
    head_.check(ctx.labels, rows);
    if (ctx.training()) return Forward{loss, Saved{std::move(x), ctx.labels, loss}};
    x = group_.whole(ctx, std::move(x));
    const auto sum = kernels::linear_cross_entropy_part(ctx.device, x.data(), ctx.value(head_.weight),
                                                        ctx.labels.span(), head_.width(), part_, exchange<T>(ctx));
    loss.add(sum);
    return Forward{loss, Saved{}};
  }
  template <class C, class T>
  auto backward(C& ctx, float dy, LmHead::Saved<T> saved) {
    if (group_.size() == 1) return ctx.backward(head_, dy, std::move(saved));
    auto x = group_.whole(ctx, std::move(saved.x));
    auto dx = ctx.make_like(x);
    const auto into = x.rows() > 0 ? ctx.into(head_.weight) : kernels::Into::add;
    const auto sum = kernels::linear_cross_entropy_part_backward(
        ctx.device, x.data(), ctx.value(head_.weight), saved.labels.span(), dx.data(), ctx.gradient(head_.weight),
        head_.width(), part_, ctx.loss_weight * static_cast<double>(dy), exchange<T>(ctx), into);
    saved.loss.add(sum);
    x = {};
    return group_.sum(ctx, std::move(dx));
  }

 private:
  /// Once a block of rows. One exchange for all blocks would compute all logits twice: measured for 512 rows of 384 and
  /// 25152 of the vocabulary a rank, that is 64 ms a block more, and an exchange takes 0.02 ms.
  template <class T, class C>
  auto exchange(C& ctx) const {
    using Compute = compute_t<T>;
    return [comm = group_.comm(ctx)](std::span<const Compute> mine, std::span<Compute> all) {
      comm.all_gather(mine, all);
    };
  }

  template <class C, class T>
  void gather_logits(C& ctx, const LogitsRequest& request, const Tensor<T, 3>& x) const {
    const auto rows = static_cast<std::int64_t>(request.rows.size()), here = part_.rows.size();
    std::vector<float> mine(static_cast<std::size_t>(rows * here)), all(mine.size() * static_cast<std::size_t>(group_.size()));
    kernels::linear_logits(ctx.device, x.data(), ctx.value(head_.weight), request.rows, std::span{mine}, head_.width(),
                           here, here);
    group_.host().all_gather(std::span<const float>{mine}, std::span{all});
    for (std::int64_t r = 0; r < part_.ranks; ++r)
      for (std::int64_t i = 0; i < rows; ++i) {
        const auto count = std::clamp<std::int64_t>(part_.used - r * here, 0, here);
        std::copy_n(all.data() + (r * rows + i) * here, count,
                    request.out.data() + i * part_.used + std::min(r * here, part_.used));
      }
  }

  TensorGroup group_;
  kernels::VocabularyPart part_;
  LmHead head_;
};

}  // namespace zeropp
