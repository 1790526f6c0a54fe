// SPDX-License-Identifier: Apache-2.0
// Causal self-attention: one product for queries, keys and values, attention in tiles, a projection. Multi-head, or
// grouped-query where key and value heads are fewer; rotary positions on request.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/rope.hpp>
#include <zeropp/layers/linear.hpp>

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
  AttentionCore(const AttentionOptions& here, Qkv of_qkv, Projection of_projection)
      : qkv(std::move(of_qkv)), projection(std::move(of_projection)), options_(here), size_(here.width / here.heads) {}

  Qkv qkv;
  Projection projection;

  const AttentionOptions& options() const { return options_; }

  template <class F>
  void for_each_child(F&& f) {
    f(qkv);
    f(projection);
  }

  template <class T>
  struct Saved {
    Tensor<T, 3> x, qkv;                  ///< [B, T, C], [B, T, C + 2·Hkv·D]
    Tensor<compute_t<T>, 3> log_sum_exp;  ///< [B, H, T]
    Tensor<T, 3> heads;                   ///< [B, T, C]: what the projection takes
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
    const auto s = shape(saved.qkv);
    auto dheads = ctx.backward(projection, std::move(dy), saved.heads);
    auto dpacked = ctx.make_like(saved.qkv);
    kernels::causal_attention_backward<typename C::Device, T>(
        ctx.device, s, query(saved.qkv), key(saved.qkv), value(saved.qkv), view(std::as_const(saved.heads)),
        saved.log_sum_exp.data(), view(std::as_const(dheads)), query(dpacked), key(dpacked), value(dpacked));
    saved.qkv = {};
    saved.heads = dheads = {};
    if (options_.rope_base > 0) turn(ctx, dpacked, s, kernels::Turn::backward);
    return ctx.backward(qkv, std::move(dpacked), std::move(saved.x));
  }

 private:
  /// Forward; `onto` is what the output is added onto, or None.
  template <class C, class T, class Onto>
  auto attend(C& ctx, Tensor<T, 3> x, Onto onto) {
    auto [packed, x_saved] = ctx.forward(qkv, std::move(x));
    const auto s = shape(packed);
    if (options_.rope_base > 0) turn(ctx, packed, s, kernels::Turn::forward);
    auto lse = ctx.template make<3, compute_t<T>>({s.batch, s.heads, s.context});
    auto heads = ctx.template make<3>({s.batch, s.context, options_.width});
    kernels::causal_attention_forward<typename C::Device, T>(ctx.device, s, query(packed), key(packed), value(packed),
                                                             view(heads), lse.data());
    auto saved = ctx.save(Saved<T>{std::move(x_saved), std::move(packed), std::move(lse), {}});
    auto [y, heads_saved] = project(ctx, std::move(heads), std::move(onto));
    saved.heads = std::move(heads_saved);
    return Forward{std::move(y), std::move(saved)};
  }
  template <class C, class T, class Onto>
  auto project(C& ctx, Tensor<T, 3> heads, Onto onto) {
    if constexpr (std::is_same_v<Onto, None>)
      return ctx.forward(projection, std::move(heads));
    else
      return ctx.forward_onto(projection, std::move(heads), std::move(onto));
  }
  template <class T>
  kernels::AttentionShape shape(const Tensor<T, 3>& packed) const {
    return {packed.extent(0), packed.extent(1), options_.heads, options_.kv_heads, size_};
  }
  // A handle to memory converts to a view to read or to write: the kernel's signature says which.
  template <class T>
  struct Place {
    T* data;
    std::int64_t stride;
    operator kernels::HeadsView<T>() const { return {data, stride}; }
    operator kernels::HeadsView<const T>() const { return {data, stride}; }
  };
  template <class T>
  Place<T> query(const Tensor<T, 3>& packed) const {
    return {packed.data(), packed.extent(2)};
  }
  template <class T>
  Place<T> key(const Tensor<T, 3>& packed) const {
    return {packed.data() + options_.width, packed.extent(2)};
  }
  template <class T>
  Place<T> value(const Tensor<T, 3>& packed) const {
    return {packed.data() + options_.width + options_.kv_heads * size_, packed.extent(2)};
  }
  template <class T>
  static Place<T> view(const Tensor<T, 3>& heads) {
    return {heads.data(), heads.extent(2)};
  }
  template <class C, class T>
  void turn(C& ctx, Tensor<T, 3>& packed, const kernels::AttentionShape& s, kernels::Turn direction) const {
    kernels::rope(ctx.device, query(packed).data, packed.extent(2), s.batch, s.context, s.heads, size_,
                  options_.rope_base, direction);
    kernels::rope(ctx.device, key(packed).data, packed.extent(2), s.batch, s.context, s.kv_heads, size_,
                  options_.rope_base, direction);
  }

  AttentionOptions options_;
  std::int64_t size_;
};

}  // namespace detail

/// Input and output [B, T, C]. Children NAME.c_attn (queries, keys, values side by side) and NAME.c_proj, as GPT-2
/// names them.
class CausalSelfAttention : public detail::AttentionCore<Linear, Linear> {
 public:
  using OutputOnto = CausalSelfAttention;

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
