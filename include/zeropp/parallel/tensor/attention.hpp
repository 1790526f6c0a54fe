// SPDX-License-Identifier: Apache-2.0
// Attention: the heads are shared, those of keys and values too. Each rank sees all positions of its heads.
#pragma once

#include <vector>

#include <zeropp/layers/attention.hpp>
#include <zeropp/parallel/tensor/linear.hpp>

namespace zeropp {

template <>
class TensorParallel<CausalSelfAttention>
    : public detail::AttentionCore<TensorParallel<Linear, SplitBy::columns>, TensorParallel<Linear, SplitBy::rows>> {
 public:
  TensorParallel(const TensorOptions& o, const CausalSelfAttention& whole)
      : AttentionCore{here(whole, o.comm), {o, whole.qkv, outputs(whole, o.comm)}, {o, whole.projection}} {}

 private:
  static Range query_heads(const CausalSelfAttention& whole, const Comm& comm) {
    return share_of(whole.options().heads, comm.rank(), comm.size(), whole.qkv.weight.name, "", " heads");
  }
  static Range kv_heads(const CausalSelfAttention& whole, const Comm& comm) {
    return share_of(whole.options().kv_heads, comm.rank(), comm.size(), whole.qkv.weight.name, "",
                    " key and value heads");
  }
  static AttentionOptions here(const CausalSelfAttention& whole, const Comm& comm) {
    auto o = whole.options();
    const auto size = o.width / o.heads;
    o.heads = query_heads(whole, comm).size();
    o.kv_heads = kv_heads(whole, comm).size();
    o.width = o.heads * size;
    return o;
  }
  /// Queries, keys and values of this rank's heads.
  static std::vector<Range> outputs(const CausalSelfAttention& whole, const Comm& comm) {
    const auto& o = whole.options();
    const auto size = o.width / o.heads;
    const auto kv = kv_heads(whole, comm);
    return {elements_of(query_heads(whole, comm), size), elements_of(kv, size, o.width),
            elements_of(kv, size, o.width + o.kv_heads * size)};
  }
};

}  // namespace zeropp
