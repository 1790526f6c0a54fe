// SPDX-License-Identifier: Apache-2.0
// The head of a language model and its loss in one layer: logits exist in tiles only. In training, forward keeps the
// input and computes nothing; backward computes loss and gradients in one sweep. In evaluation, forward computes the
// loss.
#pragma once

#include <array>
#include <string>
#include <utility>

#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/layers/context.hpp>
#include <zeropp/layers/loss.hpp>

namespace zeropp {

struct LmHeadOptions {
  std::string tied_to = {};          ///< the embedding's table, by custom "wte.weight"; empty: a table of its own
  std::int64_t vocabulary_used = 0;  ///< rows that are real where the table is padded; 0: all
  float init_std = 0.02f;
};

/// Input [B, T, C], output Loss over ctx.labels [B, T]. Parameter NAME.weight [V, C].
class LmHead {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  LmHead(const std::string& name, std::int64_t vocabulary, std::int64_t width, LmHeadOptions o = {})
      : vocabulary_(detail::positive(vocabulary, name, "the vocabulary")),
        used_(o.vocabulary_used ? o.vocabulary_used : vocabulary),
        width_(detail::positive(width, name, "the width")) {
    if (used_ < 1 || used_ > vocabulary)
      throw ConfigError(text(name, ": ", used_, " tokens do not fit a table of ", vocabulary, " rows"));
    weight = {.name = name + ".weight",
              .shape = {vocabulary, width},
              .init = Init::normal(o.init_std),
              .decay = true,
              .tied_to = std::move(o.tied_to)};
    weight.size();  // throws where it overflows
  }

  Parameter weight;

  std::string settings() const { return text("tokens ", used_); }
  auto parameters() { return std::array{&weight}; }

  std::int64_t vocabulary() const { return vocabulary_; }
  std::int64_t used() const { return used_; }  ///< rows that are real
  std::int64_t width() const { return width_; }

  template <class T>
  struct Saved {
    Tensor<T, 3> x;
    Tensor<std::int32_t, 2> labels;
    Loss loss;
  };

  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    detail::expect_width(x, width_, weight.name);
    Loss loss;
    if (ctx.logits) {
      check(*ctx.logits, x.rows());
      kernels::linear_logits(ctx.device, x.data(), ctx.value(weight), ctx.logits->rows, ctx.logits->out, width_,
                             vocabulary_, used_);
      loss.add(0, 0);
      return Forward{loss, Saved<T>{}};
    }
    check(ctx.labels, x.rows());
    if (ctx.training()) return Forward{loss, Saved<T>{std::move(x), ctx.labels, loss}};
    const auto sum = kernels::linear_cross_entropy(ctx.device, x.data(), ctx.value(weight), ctx.labels.span(), width_,
                                                   vocabulary_, used_);
    loss.add(sum);
    return Forward{loss, Saved<T>{}};
  }
  /// dy scales the gradients on top of ctx.loss_weight.
  template <class C, class T>
  auto backward(C& ctx, float dy, Saved<T> saved) {
    auto dx = ctx.make_like(saved.x);
    const auto into = saved.x.rows() > 0 ? ctx.into(weight) : kernels::Into::add;
    const auto sum = kernels::linear_cross_entropy_backward(
        ctx.device, saved.x.data(), ctx.value(weight), saved.labels.span(), dx.data(), ctx.gradient(weight), width_,
        vocabulary_, used_, ctx.loss_weight * static_cast<double>(dy), into);
    saved.loss.add(sum);
    return dx;
  }

  /// Both throw ConfigError where what is asked does not fit an input of so many rows.
  void check(const Tensor<std::int32_t, 2>& labels, std::int64_t rows) const {
    if (labels.size() != rows)
      throw ConfigError(text(weight.name, ": an input of ", rows, " rows needs as many labels, got ", labels.size()));
  }
  void check(const LogitsRequest& request, std::int64_t rows) const {
    if (static_cast<std::int64_t>(request.out.size()) != static_cast<std::int64_t>(request.rows.size()) * used_)
      throw ConfigError(text(weight.name, ": logits of ", request.rows.size(), " rows are ", request.rows.size(), " x ",
                             used_, " numbers, got room for ", request.out.size()));
    for (auto row : request.rows)
      if (row < 0 || row >= rows)
        throw ConfigError(text(weight.name, ": logits of row ", row, " are asked for, the input has ", rows, " rows"));
  }

 private:
  std::int64_t vocabulary_, used_, width_;
};

}  // namespace zeropp
