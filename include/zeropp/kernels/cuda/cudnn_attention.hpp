// SPDX-License-Identifier: Apache-2.0
// Attention by cuDNN, through its frontend (github.com/NVIDIA/cudnn-frontend). It takes a minute to compile, and no
// kernel of ours is in it: one source file of a program, a plain .cpp, includes this header and links zeropp::cudnn;
// the others find it through make_attention_provider. No copies: rows and heads are read and written as they lie.
#pragma once

#include <cudnn_frontend.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <zeropp/kernels/cuda/attention/choice.hpp>

namespace zeropp::kernels {

class CudnnAttention final : public AttentionProvider {
 public:
  CudnnAttention() { check(cudnnCreate(&handle_), "cudnnCreate"); }
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;
  ~CudnnAttention() override { cudnnDestroy(handle_); }

  std::optional<std::size_t> prepare(const AttentionCall& call, std::string& why) override {
    const Plan& plan = plan_of(call);
    why = plan.refusal;
    if (!plan.refusal.empty()) return {};
    return plan.workspace;
  }

  void run(const AttentionCall& call, void* workspace, cudaStream_t stream) override {
    const Plan& plan = plan_of(call);
    check(cudnnSetStream(handle_, stream), "cudnnSetStream");
    std::unordered_map<std::int64_t, void*> places{
        {q, writable(call.q.data)}, {k, writable(call.k.data)}, {v, writable(call.v.data)}};
    if (call.backward()) {
      places.insert({{o, writable(call.saved_out.data)},
                     {lse, writable(call.saved_lse)},
                     {dout, writable(call.dout.data)},
                     {dq, call.dq.data},
                     {dk, call.dk.data},
                     {dv, call.dv.data}});
    } else {
      places.insert({{o, call.out.data}, {lse, call.lse}});
    }
    if (auto result = plan.graph->execute(handle_, places, workspace); result.is_bad())
      throw CudaError(text("attention by cuDNN failed: ", result.get_message()));
  }

 private:
  using Graph = cudnn_frontend::graph::Graph;
  using TensorAttributes = cudnn_frontend::graph::Tensor_attributes;
  using Key = std::array<std::int64_t, 16>;
  enum Id : std::int64_t { q = 1, k, v, o, lse, dout, dq, dk, dv };
  struct Plan {
    std::unique_ptr<Graph> graph;
    std::size_t workspace = 0;
    std::string refusal;
  };

  static void check(cudnnStatus_t status, const char* what) {
    if (status != CUDNN_STATUS_SUCCESS) throw CudaError(text(what, " failed: ", cudnnGetErrorString(status)));
  }
  template <class T>
  static void* writable(const T* place) {  // cuDNN takes all places without const
    return const_cast<T*>(place);
  }
  static Key key_of(const AttentionCall& c) {
    return {c.s.batch,
            c.s.sequence,
            c.s.heads,
            c.s.kv_heads,
            c.s.head_size,
            c.q.stride,
            c.k.stride,
            c.v.stride,
            c.out.stride,
            c.saved_out.stride,
            c.dout.stride,
            c.dq.stride,
            c.dk.stride,
            c.dv.stride,
            c.backward() ? 1 + std::int64_t{c.deterministic} : 0,
            static_cast<std::int64_t>(c.type)};
  }

  const Plan& plan_of(const AttentionCall& call) {
    auto [at, is_new] = plans_.try_emplace(key_of(call));
    Plan& plan = at->second;
    if (!is_new) return plan;
    plan.graph = std::make_unique<Graph>();
    using cudnn_frontend::DataType_t;
    plan.graph->set_io_data_type(call.type == DType::f16 ? DataType_t::HALF : DataType_t::BFLOAT16)
        .set_intermediate_data_type(DataType_t::FLOAT)
        .set_compute_data_type(DataType_t::FLOAT);
    if (call.backward())
      describe_backward(*plan.graph, call);
    else
      describe_forward(*plan.graph, call);
    auto result = plan.graph->build(handle_, {cudnn_frontend::HeurMode_t::A});
    std::int64_t workspace = 0;
    if (result.is_good()) result = plan.graph->get_workspace_size(workspace);
    if (result.is_bad()) {
      plan.refusal = text("it has no kernel for ", call.s.batch, " × ", call.s.sequence, " positions of ", call.s.heads,
                          " heads (", call.s.kv_heads, " of keys) of ", call.s.head_size, ": ", result.get_message());
      plan.graph.reset();
    }
    plan.workspace = static_cast<std::size_t>(workspace);
    return plan;
  }

  /// [B, heads, T, D] as it lies in rows of `stride`.
  static TensorAttributes heads_of(Id id, const AttentionShape& s, std::int64_t heads, std::int64_t stride) {
    return TensorAttributes()
        .set_uid(id)
        .set_dim({s.batch, heads, s.sequence, s.head_size})
        .set_stride({s.sequence * stride, s.head_size, stride, 1});
  }
  static TensorAttributes lse_of(const AttentionShape& s) {
    return TensorAttributes()
        .set_uid(lse)
        .set_dim({s.batch, s.heads, s.sequence, 1})
        .set_stride({s.heads * s.sequence, s.sequence, 1, 1})
        .set_data_type(cudnn_frontend::DataType_t::FLOAT);
  }
  static void is_result(const std::shared_ptr<TensorAttributes>& tensor, const TensorAttributes& like) {
    tensor->set_output(true).set_uid(like.get_uid()).set_dim(like.get_dim()).set_stride(like.get_stride());
    if (like.get_uid() == lse) tensor->set_data_type(cudnn_frontend::DataType_t::FLOAT);
  }
  static float scale_of(const AttentionShape& s) { return 1 / std::sqrt(static_cast<float>(s.head_size)); }

  static void describe_forward(Graph& graph, const AttentionCall& c) {
    const auto& s = c.s;
    const auto options = cudnn_frontend::graph::SDPA_attributes()
                             .set_name("attention")
                             .set_generate_stats(true)
                             .set_attn_scale(scale_of(s))
                             .set_diagonal_alignment(cudnn_frontend::DiagonalAlignment_t::TOP_LEFT)
                             .set_diagonal_band_right_bound(0);
    const auto outputs = graph.sdpa(graph.tensor(heads_of(q, s, s.heads, c.q.stride)),
                                    graph.tensor(heads_of(k, s, s.kv_heads, c.k.stride)),
                                    graph.tensor(heads_of(v, s, s.kv_heads, c.v.stride)), options);
    is_result(outputs[0], heads_of(o, s, s.heads, c.out.stride));
    is_result(outputs[1], lse_of(s));
  }
  static void describe_backward(Graph& graph, const AttentionCall& c) {
    const auto& s = c.s;
    const auto options = cudnn_frontend::graph::SDPA_backward_attributes()
                             .set_name("attention backward")
                             .set_attn_scale(scale_of(s))
                             .set_diagonal_alignment(cudnn_frontend::DiagonalAlignment_t::TOP_LEFT)
                             .set_diagonal_band_right_bound(0)
                             .set_deterministic_algorithm(c.deterministic);
    const auto outputs = graph.sdpa_backward(
        graph.tensor(heads_of(q, s, s.heads, c.q.stride)), graph.tensor(heads_of(k, s, s.kv_heads, c.k.stride)),
        graph.tensor(heads_of(v, s, s.kv_heads, c.v.stride)), graph.tensor(heads_of(o, s, s.heads, c.saved_out.stride)),
        graph.tensor(heads_of(dout, s, s.heads, c.dout.stride)), graph.tensor(lse_of(s)), options);
    is_result(outputs[0], heads_of(dq, s, s.heads, c.dq.stride));
    is_result(outputs[1], heads_of(dk, s, s.kv_heads, c.dk.stride));
    is_result(outputs[2], heads_of(dv, s, s.kv_heads, c.dv.stride));
  }

  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

namespace detail {
inline const bool cudnn_attention_is_here = (make_attention_provider = []() -> std::unique_ptr<AttentionProvider> {
                                              return std::make_unique<CudnnAttention>();
                                            }) != nullptr;
}

}  // namespace zeropp::kernels
