// SPDX-License-Identifier: Apache-2.0
// The embedding: ranks share the vocabulary. A token of another rank adds nothing, so the sum over ranks is exact; the
// positions, which every rank holds, are added once, after it.
#pragma once

#include <utility>

#include <zeropp/layers/embedding.hpp>
#include <zeropp/parallel/tensor/group.hpp>
#include <zeropp/parallel/tensor/slice.hpp>

namespace zeropp {

template <>
class TensorParallel<GptEmbedding> {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .splits_backward = true};

  /// Tied tables are cut alike: the whole vocabulary, padding included, is divided.
  TensorParallel(const TensorOptions& o, GptEmbedding whole)
      : group_(o),
        rows_(share_of(whole.options().vocabulary, o.comm.rank(), o.comm.size(), whole.tables[0].name,
                       "a vocabulary of ")),
        embedding_(std::move(whole)) {
    auto& tokens = embedding_.tables[0];
    tokens = cut(std::move(tokens), 0, {rows_}, o.comm);
  }

  std::int64_t width() const { return embedding_.width(); }
  std::string settings() const { return embedding_.settings(); }
  std::vector<Parameter*> parameters() { return embedding_.parameters(); }

  template <class C>
  auto forward(C& ctx, Tensor<std::int32_t, 2> tokens) {
    if (group_.size() == 1) return ctx.forward(embedding_, std::move(tokens));
    const auto& o = embedding_.options();
    const auto sequence = tokens.extent(1);
    embedding_.expect_sequence(sequence * ctx.context_shard.size());
    auto partial = ctx.template make<3>({tokens.extent(0), sequence, o.width});
    kernels::embedding_forward(ctx.device, tokens.span(), ctx.value(embedding_.tables[0]), o.vocabulary_used,
                               static_cast<const typename C::Weight*>(nullptr), sequence, partial.data(), o.width,
                               rows_);
    auto y = group_.sum(ctx, std::move(partial));
    if (embedding_.tables.size() > 1) {
      const auto here = y.extent(1);
      kernels::add_rows(ctx.device, ctx.value(embedding_.tables[1]), here, y.data(), y.rows(), o.width,
                        ctx.context_shard.positions(sequence).from(group_.sequence_shard().index * here));
    }
    return Forward{std::move(y), ctx.save(std::move(tokens))};
  }
  /// Its rows of the table may stand anywhere, so a rank looks at all positions, and has the whole gradient of the
  /// table of positions.
  template <class C, class T>
  None backward(C& ctx, Tensor<T, 3> dy, Tensor<std::int32_t, 2> tokens) {
    ctx.weight_gradients([this, dy = group_.whole(ctx, std::move(dy)), tokens](auto& on) {
      auto& tables = embedding_.tables;
      kernels::embedding_backward(on.device, tokens.span(), dy.data(), on.gradient(tables[0]),
                                  tables.size() > 1 ? on.gradient(tables[1]) : nullptr, tokens.extent(1),
                                  embedding_.options().width, rows_, on.context_shard.positions(tokens.extent(1)));
    });
    return {};
  }

 private:
  TensorGroup group_;
  Range rows_;
  GptEmbedding embedding_;
};

}  // namespace zeropp
