// SPDX-License-Identifier: Apache-2.0
// Causal attention on a GPU: the overloads of kernels/attention.hpp. attention/choice.hpp says which kernels run.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/cuda/attention/choice.hpp>
#include <zeropp/kernels/cuda/attention/launchers.hpp>

namespace zeropp::kernels {

namespace detail {

/// For kernels that know no other keys than those of the queries, and sequences one after the other only.
template <class... Views>
AttentionShape checked_whole(const AttentionShape& s, const Views&... views) {
  const auto whole = checked(s);
  if ((s.keys != 0 && s.keys != s.sequence) || s.offset != 0)
    throw ConfigError(text("causal attention on a GPU sees the keys of its own queries, asked for ", s.keys,
                           " keys from query ", s.offset, " on; partial_attention_forward takes these"));
  const auto check = [&](const auto& view) {
    if (view.sequence != 0 && view.sequence != s.sequence * view.stride)
      throw ConfigError(text("causal attention on a GPU takes sequences one after the other, found ", view.sequence,
                             " elements between them instead of ", s.sequence * view.stride));
  };
  (check(views), ...);
  return whole;
}

/// A view that says how far apart sequences lie, of `rows` positions where it did not.
template <class T>
HeadsView<T> with_sequence(HeadsView<T> view, std::int64_t rows) {
  if (view.sequence == 0) view.sequence = rows * view.stride;
  return view;
}
template <class T>
HeadsIn untyped(HeadsView<const T> view) {
  return {view.data, view.stride, view.sequence};
}
template <class T>
HeadsOut untyped(HeadsView<T> view) {
  return {view.data, view.stride, view.sequence};
}
/// Gradients of keys or values where there are no queries.
template <class R>
void clear_heads(const AttentionShape& s, HeadsView<R> to, cudaStream_t stream) {
  const auto row = static_cast<std::size_t>(s.kv_heads * s.head_size) * sizeof(R);
  for (std::int64_t b = 0; b < s.batch; ++b)
    cuda_check(cudaMemset2DAsync(to.data + b * to.sequence, static_cast<std::size_t>(to.stride) * sizeof(R), 0, row,
                                 static_cast<std::size_t>(s.key_count()), stream),
               "cudaMemset2DAsync");
}
template <class T, class R>
AttentionPlain<T, R> plain_of(const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v) {
  AttentionPlain<T, R> a{};
  a.s = s, a.s.keys = s.key_count();
  a.q = q, a.k = k, a.v = v;
  a.scale = 1 / std::sqrt(static_cast<compute_t<T>>(s.head_size));
  return a;
}

template <CudaDevice D>
void run_by_cudnn(D& device, const Cost& cost, const AttentionCall& call) {
  auto& attention = device.template companion<CudaAttention>();
  const auto bytes = static_cast<std::int64_t>(attention.workspace(call));
  const Tensor<std::byte, 1> workspace(device.pool(), {bytes}, Purpose::buffers);
  device.run(cost, [&](cudaStream_t stream) { attention.provider().run(call, workspace.data(), stream); });
}

/// Attention of whole sequences, or over a part of the keys (AttentionCall::part) with results of the type R that computes.
template <CudaDevice D, class T, class R>
void gpu_attention_forward(D& device, bool part, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                           HeadsView<const T> v, HeadsView<R> out, compute_t<T>* lse) {
  const auto rows = s.batch * s.heads * s.sequence;
  if (rows == 0) return;
  q = with_sequence(q, s.sequence), out = with_sequence(out, s.sequence);
  k = with_sequence(k, s.key_count()), v = with_sequence(v, s.key_count());
  const auto cost = attention_cost("attention", s, 2, sizeof(T));
  if constexpr (is_half<T>) {
    const AttentionCall call{.s = s,
                             .type = dtype_of<T>,
                             .part = part,
                             .q = untyped(q),
                             .k = untyped(k),
                             .v = untyped(v),
                             .out = untyped(out),
                             .lse = lse};
    const auto backend = device.template companion<CudaAttention>().choose(call);
    if (backend == AttentionBackend::cudnn) return run_by_cudnn(device, cost, call);
    if (backend == AttentionBackend::tiles)
      return device.run(cost, [&](cudaStream_t stream) { forward_by_tiles<T, R>(call, stream); });
    if (backend == AttentionBackend::warpgroups) {
      const Tensor<unsigned, 1> counter(device.pool(), {1}, Purpose::buffers);
      return device.run(cost, [&](cudaStream_t stream) { forward_by_warpgroups<T, R>(call, counter.data(), stream); });
    }
  }
  device.run(cost, [&](cudaStream_t stream) {
    auto a = plain_of<T, R>(s, q, k, v);
    a.to = out, a.lse = lse;
    forward_plainly(a, stream);
  });
}
template <CudaDevice D, class T, class R>
void gpu_attention_backward(D& device, bool part, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                            HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                            HeadsView<const T> dout, HeadsView<R> dq, HeadsView<R> dk, HeadsView<R> dv) {
  const auto rows = s.batch * s.heads * s.sequence;
  q = with_sequence(q, s.sequence), out = with_sequence(out, s.sequence);
  dout = with_sequence(dout, s.sequence), dq = with_sequence(dq, s.sequence);
  k = with_sequence(k, s.key_count()), v = with_sequence(v, s.key_count());
  dk = with_sequence(dk, s.key_count()), dv = with_sequence(dv, s.key_count());
  const auto cost = attention_cost("attention backward", s, 5, sizeof(T));
  if (rows == 0) {
    if (s.batch * s.key_count() == 0) return;
    return device.run(cost, [&](cudaStream_t stream) { clear_heads(s, dk, stream), clear_heads(s, dv, stream); });
  }
  if constexpr (is_half<T>) {
    auto& attention = device.template companion<CudaAttention>();
    const AttentionCall call{.s = s,
                             .type = dtype_of<T>,
                             .part = part,
                             .q = untyped(q),
                             .k = untyped(k),
                             .v = untyped(v),
                             .out = {},
                             .saved_out = untyped(out),
                             .dout = untyped(dout),
                             .saved_lse = lse,
                             .dq = untyped(dq),
                             .dk = untyped(dk),
                             .dv = untyped(dv),
                             .deterministic = attention.options.deterministic};
    const auto backend = attention.choose(call);
    if (backend == AttentionBackend::cudnn) return run_by_cudnn(device, cost, call);
    if (backend != AttentionBackend::plain) {
      const Tensor<float, 1> of_rows(device.pool(), {2 * rows}, Purpose::buffers);
      const Tensor<unsigned, 1> counters(device.pool(), {2}, Purpose::buffers);
      return device.run(cost, [&](cudaStream_t stream) {
        if (backend == AttentionBackend::tiles)
          backward_by_tiles<T, R>(call, of_rows.data(), stream);
        else
          backward_by_warpgroups<T, R>(call, of_rows.data(), counters.data(), stream);
      });
    }
  }
  const Tensor<compute_t<T>, 1> delta(device.pool(), {rows}, Purpose::buffers);
  device.run(cost, [&](cudaStream_t stream) {
    auto a = plain_of<T, R>(s, q, k, v);
    a.out = out, a.dout = dout, a.to = dq, a.dk = dk, a.dv = dv;
    a.lse = const_cast<compute_t<T>*>(lse);  // read only
    a.delta = delta.data();
    backward_plainly(a, stream);
  });
}

}  // namespace detail

template <CudaDevice D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  detail::gpu_attention_forward(device, false, detail::checked_whole(s, q, k, v, out), q, k, v, out, lse);
}

/// Overwrites dq, dk, dv; the same bits every time (cuDNN: unless options.deterministic is off).
template <CudaDevice D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  const auto whole = detail::checked_whole(s, q, k, v, out, dout, dq, dk, dv);
  detail::gpu_attention_backward(device, false, whole, q, k, v, out, lse, dout, dq, dk, dv);
}

}  // namespace zeropp::kernels
