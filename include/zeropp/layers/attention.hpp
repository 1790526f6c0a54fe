// SPDX-License-Identifier: Apache-2.0
// Causal self-attention: one product for queries, keys and values, attention in tiles, a projection. Multi-head, or
// grouped-query where key and value heads are fewer; rotary positions on request.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include <zeropp/kernels/rope.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/packed_heads.hpp>
#include <zeropp/layers/ring_attention.hpp>
#include <zeropp/layers/ulysses.hpp>

namespace zeropp {

struct AttentionOptions {
  std::int64_t width = 0;     ///< C
  std::int64_t heads = 1;     ///< H; divides the width
  std::int64_t kv_heads = 0;  ///< divides H; 0: H
  double rope_base = 0;       ///< rotary positions with this base, by custom 10000; 0: none
  bool bias = true;
  float init_std = 0.02f, projection_std = 0.02f;
};

namespace detail {

/// Attention between the layer that makes queries, keys and values, and the projection. `here` says how many heads are
/// computed here and how wide they are together: C, or a part of it.
template <class Qkv, class Projection>
class AttentionCore {
 public:
  static constexpr LayerTraits traits{.shares_context = true};

  AttentionCore(const AttentionOptions& here, Qkv of_qkv, Projection of_projection)
      : qkv(std::move(of_qkv)),
        projection(std::move(of_projection)),
        options_(here),
        heads_{here.heads, here.kv_heads, here.width / here.heads} {}

  Qkv qkv;
  Projection projection;

  const AttentionOptions& options() const { return options_; }
  std::string settings() const {
    return text("heads ", options_.heads, ", key heads ", options_.kv_heads, ", rope_base ", options_.rope_base);
  }

  template <class F>
  void for_each_child(F&& f) {
    f(qkv);
    f(projection);
  }

  /// Throws ConfigError where these context ranks cannot share this layer.
  void check_context(const ContextShard& shard) {
    if (shard.size() > 1 && shard.attention() == ContextAttention::ulysses)
      heads_of_rank(heads_.heads, heads_.kv_heads, shard.rank(), shard.size(), name());
  }

  template <class T>
  struct Saved {
    Tensor<T, 3> x;        ///< [B, T, C]
    Attended<T> attended;  ///< its output is what the projection saves
  };

  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    return attend(ctx, std::move(x), None{});
  }
  template <class C, class T>
  auto forward_onto(C& ctx, Tensor<T, 3> x, Tensor<T, 3> onto) {
    return attend(ctx, std::move(x), std::move(onto));
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, Saved<T> saved) {
    auto doutput = ctx.backward(projection, std::move(dy), saved.attended.output);
    auto dpacked = on_part(
        ctx, [&](auto attention) { return attention.backward(ctx, std::move(saved.attended), std::move(doutput)); });
    turn(ctx, dpacked, kernels::Turn::backward);
    return ctx.backward(qkv, std::move(dpacked), std::move(saved.x));
  }

 private:
  /// Forward; `onto` is what the output is added onto, or None.
  template <class C, class T, class Onto>
  auto attend(C& ctx, Tensor<T, 3> x, Onto onto) {
    auto packed = ctx.forward(qkv, std::move(x));
    turn(ctx, packed.output, kernels::Turn::forward);
    auto attended = on_part(ctx, [&](auto attention) { return attention.forward(ctx, std::move(packed.output)); });
    auto output = std::exchange(attended.output, {});
    auto saved = ctx.save(Saved<T>{std::move(packed.saved), std::move(attended)});
    auto [y, output_saved] = project(ctx, std::move(output), std::move(onto));
    saved.attended.output = std::move(output_saved);
    return Forward{std::move(y), std::move(saved)};
  }
  template <class C, class T, class Onto>
  auto project(C& ctx, Tensor<T, 3> output, Onto onto) {
    if constexpr (std::is_same_v<Onto, None>)
      return ctx.forward(projection, std::move(output));
    else
      return ctx.forward_onto(projection, std::move(output), std::move(onto));
  }

  /// Calls f with the attention of this run: over whole sequences, or shared by context ranks.
  template <class C, class F>
  auto on_part(C& ctx, F f) {
    if (ctx.context_shard.size() == 1) return f(WholeAttention{heads_});
    if (ctx.context_shard.attention() == ContextAttention::ring) return f(RingAttention{heads_, ctx.context_shard});
    return f(UlyssesAttention{heads_, ctx.context_shard, name()});
  }

  template <class C, class T>
  void turn(C& ctx, Tensor<T, 3>& packed, kernels::Turn direction) const {
    if (options_.rope_base == 0) return;
    const auto positions = ctx.context_shard.positions(packed.extent(1));
    T* at = packed.data();
    for (auto heads : {heads_.heads, heads_.kv_heads}) {  // queries, and the keys behind them
      kernels::rope(ctx.device, at, packed.extent(2), packed.extent(0), packed.extent(1), heads, heads_.size,
                    options_.rope_base, direction, positions);
      at += heads_.width();
    }
  }

  std::string name() {
    std::string first;
    visit_parameters(qkv, [&](Parameter& p) { first = first.empty() ? p.name : first; });
    return first;
  }

  AttentionOptions options_;
  PackedHeads heads_;
};

}  // namespace detail

/// Input and output [B, T, C]. Children NAME.c_attn (queries, keys, values side by side) and NAME.c_proj, as GPT-2
/// names them.
class CausalSelfAttention : public detail::AttentionCore<Linear, Linear> {
 public:
  static constexpr LayerTraits traits{.shares_context = true, .adds_output_onto = &this_layer<CausalSelfAttention>};

  CausalSelfAttention(const std::string& name, const AttentionOptions& o)
      : CausalSelfAttention(Checked{checked(name, o)}, name) {}

 private:
  struct Checked {
    AttentionOptions o;
  };
  CausalSelfAttention(const Checked& c, const std::string& name)
      : AttentionCore{
            c.o,
            Linear{name + ".c_attn",
                   c.o.width,
                   c.o.width + 2 * c.o.kv_heads * (c.o.width / c.o.heads),
                   {.bias = c.o.bias, .init_std = c.o.init_std}},
            Linear{name + ".c_proj", c.o.width, c.o.width, {.bias = c.o.bias, .init_std = c.o.projection_std}}} {}

  static AttentionOptions checked(const std::string& name, AttentionOptions o) {
    detail::positive(o.width, name, "the width");
    checked_product(o.width, 3);
    detail::positive(o.heads, name, "the number of heads");
    if (o.width % o.heads)
      throw ConfigError(text(name, ": a width of ", o.width, " is not divisible by ", o.heads, " heads"));
    if (o.kv_heads == 0) o.kv_heads = o.heads;
    detail::positive(o.kv_heads, name, "the number of key and value heads");
    if (o.heads % o.kv_heads)
      throw ConfigError(text(name, ": ", o.heads, " heads are not divisible by ", o.kv_heads, " key and value heads"));
    if (o.rope_base < 0)
      throw ConfigError(text(name, ": the base of rotary positions must be above 0, got ", o.rope_base));
    if (o.rope_base > 0 && o.width / o.heads % 2)
      throw ConfigError(text(name, ": rotary positions need an even head size, got ", o.width / o.heads));
    return o;
  }
};

}  // namespace zeropp
