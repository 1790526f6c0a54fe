// SPDX-License-Identifier: Apache-2.0
// Ring attention: queries stay where they are, keys and values go round the context ranks, and the results of attention
// to each rank's keys are joined (Liu et al., "Ring Attention with Blockwise Transformers", 2023, arXiv 2310.01889).
// A rank has an early and a late chunk of the sequence (ContextShard), so that each step is the same work for all
// (Brandon et al., "Striped Attention", 2023, arXiv 2311.09431, on why; the zigzag of chunks is Llama 3's, arXiv
// 2407.21783).
//
// The queries of rank r see these of rank s's two chunks, by causality: for s = r both, each query up to its own place;
// for s < r the early one, all of it; for s > r both, but the late queries only.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include <zeropp/base/error.hpp>
#include <zeropp/comm/on_device.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/partial_attention.hpp>
#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/layers/context_shard.hpp>
#include <zeropp/layers/packed_heads.hpp>

namespace zeropp::detail {

class RingAttention {
 public:
  RingAttention(const PackedHeads& heads, const ContextShard& shard) : heads_(heads), shard_(shard) {}

  template <class C, class T>
  Attended<T> forward(C& ctx, Tensor<T, 3> packed) const {
    using Sum = compute_t<T>;
    const auto s = own_shape(packed);
    auto keys = keys_of(ctx, packed);
    send(ctx, keys);
    auto output = ctx.template make<3, Sum>({s.batch, s.sequence, heads_.width()});
    auto lse = ctx.template make<3, Sum>({s.batch, s.heads, s.sequence});
    kernels::partial_attention_forward<typename C::Device, T>(
        ctx.device, s, HeadsIn{packed}, HeadsIn{keys}, HeadsIn{keys, heads_.kv_width()}, HeadsIn{output}, lse.data());
    auto partial = ctx.template make<3, Sum>(output.shape());
    auto partial_lse = ctx.template make<3, Sum>(lse.shape());
    for (int step = 1; step < shard_.size(); ++step) {
      keys = receive<T>(ctx, keys.shape());
      if (step + 1 < shard_.size()) send(ctx, keys);
      const auto seen = seen_at(step, s);
      const kernels::HeadsView<Sum> into{partial.data(), heads_.width()};
      kernels::partial_attention_forward<typename C::Device, T>(ctx.device, seen.shape, HeadsIn{packed, 0, seen.first},
                                                                HeadsIn{keys}, HeadsIn{keys, heads_.kv_width()}, into,
                                                                partial_lse.data());
      kernels::merge_partial_attention(ctx.device, seen.shape, partial.data(), partial_lse.data(), output.data(),
                                       lse.data(), s.sequence, seen.first);
    }
    return {in_type<T>(ctx, std::move(output)), std::move(packed), std::move(lse), {}};
  }

  template <class C, class T>
  Tensor<T, 3> backward(C& ctx, Attended<T> a, Tensor<T, 3> doutput) const {
    using Sum = compute_t<T>;
    const auto s = own_shape(a.qkv);
    const auto value = heads_.kv_width(), keys_width = 2 * value;
    auto keys = keys_of(ctx, a.qkv);
    send(ctx, keys);
    const Extents<3> of_queries{s.batch, s.sequence, heads_.width()}, of_keys{s.batch, s.sequence, keys_width};
    auto dq = ctx.template make<3, Sum>(of_queries), dkeys = ctx.template make<3, Sum>(of_keys);
    const auto run = [&](const kernels::AttentionShape& shape, std::int64_t first, const Sum* lse,
                         kernels::HeadsView<Sum> to_queries, const Tensor<Sum, 3>& to_keys) {
      kernels::partial_attention_backward<typename C::Device, T>(
          ctx.device, shape, HeadsIn{a.qkv, 0, first}, HeadsIn{keys}, HeadsIn{keys, value}, HeadsIn{a.output, 0, first},
          lse, HeadsIn{doutput, 0, first}, to_queries, HeadsIn{to_keys}, HeadsIn{to_keys, value});
    };
    run(s, 0, a.log_sum_exp.data(), HeadsIn{dq}, dkeys);

    // Gradients of keys and values travel a step behind them, and come home at last.
    const auto half = s.sequence / 2;
    auto late_lse = ctx.template make<3, Sum>({s.batch, s.heads, half});
    copy(ctx, {half, s.sequence, 0, half, s.batch * s.heads, half}, a.log_sum_exp, late_lse);
    auto partial_dq = ctx.template make<3, Sum>(of_queries), partial_dkeys = ctx.template make<3, Sum>(of_keys);
    Tensor<Sum, 3> travelling;
    for (int step = 1; step < shard_.size(); ++step) {
      keys = receive<T>(ctx, keys.shape());
      if (step + 1 < shard_.size()) send(ctx, keys);
      const auto seen = seen_at(step, s);
      run(seen.shape, seen.first, seen.first ? late_lse.data() : a.log_sum_exp.data(),
          {partial_dq.data(), heads_.width()}, partial_dkeys);
      const auto width = heads_.width(), queries = seen.shape.sequence, seen_keys = seen.shape.keys;
      add(ctx, {0, queries * width, seen.first * width, s.sequence * width, s.batch, queries * width}, partial_dq, dq);
      if (step == 1) {
        travelling = ctx.template make<3, Sum>(of_keys);
        kernels::fill(ctx.device, travelling.span(), Sum{0});
      } else {
        travelling = receive<Sum>(ctx, of_keys);
      }
      const auto sequence = s.sequence * keys_width;
      add(ctx, {0, sequence, 0, sequence, s.batch, seen_keys * keys_width}, partial_dkeys, travelling);
      send(ctx, travelling);
    }
    travelling = receive<Sum>(ctx, of_keys);
    kernels::add(ctx.device, dkeys.span(), travelling.span(), dkeys.span());

    auto dpacked = ctx.make_like(a.qkv);
    const auto rows = s.batch * s.sequence, packed_width = heads_.packed_width();
    copy(ctx, {0, heads_.width(), 0, packed_width, rows, heads_.width()}, dq, dpacked);
    copy(ctx, {0, keys_width, heads_.width(), packed_width, rows, keys_width}, dkeys, dpacked);
    return dpacked;
  }

 private:
  /// The keys of another rank that queries from `first` on see: all of `shape.keys`.
  struct Seen {
    kernels::AttentionShape shape;
    std::int64_t first;
  };
  Seen seen_at(int step, const kernels::AttentionShape& own) const {
    const auto half = own.sequence / 2;
    auto shape = own;
    const bool earlier = step <= shard_.rank();  // the rank that they come from, step places back, is before this one
    shape.sequence = earlier ? own.sequence : half;
    shape.keys = earlier ? half : own.sequence;
    shape.offset = shape.keys - 1;
    return {shape, earlier ? 0 : half};
  }

  /// Throws ConfigError where this rank's positions are not two chunks.
  template <class T>
  kernels::AttentionShape own_shape(const Tensor<T, 3>& packed) const {
    if (packed.extent(1) % 2)
      throw ConfigError(text("ring attention: ", packed.extent(1),
                             " positions on a rank are not two equal chunks; sequences must be a multiple of ",
                             2 * shard_.size(), " tokens"));
    return heads_.shape(packed);
  }

  /// To the next rank of the ring, and from the one before.
  template <class C, class T>
  void send(C& ctx, const Tensor<T, 3>& x) const {
    const int next = (shard_.rank() + 1) % shard_.size();
    on_device(shard_.comm(), ctx.device).send(next, std::span<const T>{x.span()});
  }
  template <class T, class C>
  Tensor<T, 3> receive(C& ctx, Extents<3> shape) const {
    auto x = ctx.template make<3, T>(shape);
    const int before = (shard_.rank() + shard_.size() - 1) % shard_.size();
    on_device(shard_.comm(), ctx.device).recv(before, x.span());
    return x;
  }

  /// Keys and values side by side: what travels.
  template <class C, class T>
  Tensor<T, 3> keys_of(C& ctx, const Tensor<T, 3>& packed) const {
    const auto width = 2 * heads_.kv_width();
    auto keys = ctx.template make<3, T>({packed.extent(0), packed.extent(1), width});
    copy(ctx, {heads_.width(), packed.extent(2), 0, width, packed.rows(), width}, packed, keys);
    return keys;
  }
  template <class C, class A, class B, int R>
  static void copy(C& ctx, kernels::Rectangle one, const Tensor<A, R>& from, const Tensor<B, R>& to) {
    kernels::copy_rectangles(ctx.device, std::span<const kernels::Rectangle>{&one, 1}, from.data(), to.data());
  }
  template <class C, class A, class B, int R>
  static void add(C& ctx, kernels::Rectangle one, const Tensor<A, R>& from, const Tensor<B, R>& to) {
    kernels::add_rectangles(ctx.device, std::span<const kernels::Rectangle>{&one, 1}, from.data(), to.data());
  }
  template <class T, class C, class Sum>
  static Tensor<T, 3> in_type(C& ctx, Tensor<Sum, 3> x) {
    if constexpr (std::is_same_v<T, Sum>) {
      return x;
    } else {
      auto y = ctx.template make<3, T>(x.shape());
      kernels::convert(ctx.device, x.span(), y.span());
      return y;
    }
  }

  PackedHeads heads_;
  ContextShard shard_;
};

}  // namespace zeropp::detail
