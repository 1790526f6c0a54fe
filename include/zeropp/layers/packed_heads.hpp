// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values as one product leaves them: side by side in rows of (H + 2·Hkv)·D elements.
#pragma once

#include <cstdint>

#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/attention.hpp>

namespace zeropp::detail {

struct PackedHeads {
  std::int64_t heads, kv_heads, size;  ///< H, Hkv, D

  std::int64_t width() const { return heads * size; }  ///< of the queries, and of the output
  std::int64_t kv_width() const { return kv_heads * size; }
  std::int64_t packed_width() const { return width() + 2 * kv_width(); }

  template <class T>
  kernels::AttentionShape shape(const Tensor<T, 3>& x) const {
    return {x.extent(0), x.extent(1), heads, kv_heads, size};
  }
};

/// Heads in the rows of a tensor [B, T, ...], from column `column` and position `first` on. It converts to a view to
/// read or to write: the kernel's signature says which.
template <class T>
struct HeadsIn {
  const Tensor<T, 3>& rows;
  std::int64_t column = 0, first = 0;

  operator kernels::HeadsView<T>() const { return {data(), rows.extent(2), rows.extent(1) * rows.extent(2)}; }
  operator kernels::HeadsView<const T>() const { return {data(), rows.extent(2), rows.extent(1) * rows.extent(2)}; }

 private:
  T* data() const { return rows.data() + first * rows.extent(2) + column; }
};
template <class T>
HeadsIn(const Tensor<T, 3>&) -> HeadsIn<T>;
template <class T>
HeadsIn(const Tensor<T, 3>&, std::int64_t) -> HeadsIn<T>;
template <class T>
HeadsIn(const Tensor<T, 3>&, std::int64_t, std::int64_t) -> HeadsIn<T>;

/// The results of attention: the output, and what its backward takes beside it.
template <class T>
struct Attended {
  Tensor<T, 3> output;  ///< [B, T, H·D]
  Tensor<T, 3> qkv;     ///< [B, T, (H + 2·Hkv)·D]; under Ulysses of all positions and this rank's heads
  Tensor<compute_t<T>, 3> log_sum_exp;  ///< [B, H, T] of the same
  Tensor<T, 3> exchanged;               ///< under Ulysses the output of the same; else none
};

/// Attention of whole sequences.
class WholeAttention {
 public:
  explicit WholeAttention(const PackedHeads& heads) : heads_(heads) {}

  template <class C, class T>
  Attended<T> forward(C& ctx, Tensor<T, 3> packed) const {
    const auto s = heads_.shape(packed);
    auto lse = ctx.template make<3, compute_t<T>>({s.batch, s.heads, s.sequence});
    auto output = ctx.template make<3, T>({s.batch, s.sequence, heads_.width()});
    kernels::causal_attention_forward<typename C::Device, T>(
        ctx.device, s, HeadsIn{packed}, HeadsIn{packed, heads_.width()},
        HeadsIn{packed, heads_.width() + heads_.kv_width()}, HeadsIn{output}, lse.data());
    return {std::move(output), std::move(packed), std::move(lse), {}};
  }

  /// The gradient of what was packed. `a.output` and `doutput` are of this rank's positions.
  template <class C, class T>
  Tensor<T, 3> backward(C& ctx, Attended<T> a, Tensor<T, 3> doutput) const {
    auto dpacked = ctx.make_like(a.qkv);
    const auto key = heads_.width(), value = key + heads_.kv_width();
    kernels::causal_attention_backward<typename C::Device, T>(
        ctx.device, heads_.shape(a.qkv), HeadsIn{a.qkv}, HeadsIn{a.qkv, key}, HeadsIn{a.qkv, value}, HeadsIn{a.output},
        a.log_sum_exp.data(), HeadsIn{doutput}, HeadsIn{dpacked}, HeadsIn{dpacked, key}, HeadsIn{dpacked, value});
    return dpacked;
  }

 private:
  PackedHeads heads_;
};

}  // namespace zeropp::detail
