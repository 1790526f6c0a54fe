// SPDX-License-Identifier: Apache-2.0
// Causal attention on a GPU: the overloads of kernels/attention.hpp. attention/choice.hpp says which kernels run.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/cuda/attention/choice.hpp>
#include <zeropp/kernels/cuda/attention/plain.hpp>
#include <zeropp/kernels/cuda/attention/tiles_backward.hpp>
#include <zeropp/kernels/cuda/attention/tiles_forward.hpp>

namespace zeropp::kernels {

namespace detail {

inline void check_cuda_attention(const AttentionShape& s) {
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    throw ConfigError(text("attention: ", s.heads, " query heads cannot share ", s.kv_heads, " key heads evenly"));
}
/// For kernels that know no other keys than those of the queries, and sequences one after the other only.
template <class... Views>
void check_whole_attention(const AttentionShape& s, const Views&... views) {
  check_cuda_attention(s);
  if ((s.keys != 0 && s.keys != s.context) || s.offset != 0)
    throw ConfigError(text("causal attention on a GPU sees the keys of its own queries, asked for ", s.keys,
                           " keys from query ", s.offset, " on; partial_attention_forward takes these"));
  const auto check = [&](const auto& view) {
    if (view.sequence != 0 && view.sequence != s.context * view.stride)
      throw ConfigError(text("causal attention on a GPU takes sequences one after the other, found ", view.sequence,
                             " elements between them instead of ", s.context * view.stride));
  };
  (check(views), ...);
}

/// T is what the call's type says, R the type of its results; rows: [B, H, T, 2].
template <class T, class R>
void forward_by_tiles(const AttentionCall& c, cudaStream_t stream);
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream);
template <class T, class R>
void forward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);
template <class T, class R>
void backward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);

/// Plain kernels want to be told what views and shapes leave out.
template <class T>
HeadsView<T> with_sequence(HeadsView<T> view, std::int64_t rows) {
  if (view.sequence == 0) view.sequence = rows * view.stride;
  return view;
}
template <class T, class R>
AttentionPlain<T, R> plain_of(const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v) {
  AttentionPlain<T, R> a{};
  a.s = s, a.s.keys = s.key_count();
  a.q = with_sequence(q, s.context), a.k = with_sequence(k, a.s.keys), a.v = with_sequence(v, a.s.keys);
  a.scale = 1 / std::sqrt(static_cast<compute_t<T>>(s.head_size));
  return a;
}

/// What is left of a forward once cuDNN has not done it.
template <CudaDevice D, class T, class R>
void own_attention_forward(D& device, const Cost& cost, AttentionBackend backend, const AttentionCall& call,
                           HeadsView<const T> q, HeadsView<const T> k, HeadsView<const T> v, HeadsView<R> out,
                           compute_t<T>* lse) {
  const auto& s = call.s;
  device.run(cost, [&](cudaStream_t stream) {
    if constexpr (is_half<T>)
      if (backend == AttentionBackend::tiles) return forward_by_tiles<T, R>(call, stream);
    auto a = plain_of<T, R>(s, q, k, v);
    a.to = with_sequence(out, s.context), a.lse = lse;
    forward_plainly(a, stream);
  });
}
template <CudaDevice D, class T, class R>
void own_attention_backward(D& device, const Cost& cost, AttentionBackend backend, const AttentionCall& call,
                            HeadsView<const T> q, HeadsView<const T> k, HeadsView<const T> v, HeadsView<const T> out,
                            const compute_t<T>* lse, HeadsView<const T> dout, HeadsView<R> dq, HeadsView<R> dk,
                            HeadsView<R> dv) {
  const auto& s = call.s;
  const auto rows = s.batch * s.heads * s.context;
  // tiles: log-sum-exp and rowsum(dO ∘ O) side by side; plain: the latter
  const Tensor<compute_t<T>, 1> of_rows(device.pool(), {backend == AttentionBackend::tiles ? 2 * rows : rows},
                                        Purpose::buffers);
  device.run(cost, [&](cudaStream_t stream) {
    if constexpr (is_half<T>)
      if (backend == AttentionBackend::tiles) return backward_by_tiles<T, R>(call, of_rows.data(), stream);
    auto a = plain_of<T, R>(s, q, k, v);
    a.out = with_sequence(out, s.context), a.dout = with_sequence(dout, s.context);
    a.to = with_sequence(dq, s.context), a.dk = with_sequence(dk, a.s.keys), a.dv = with_sequence(dv, a.s.keys);
    a.lse = const_cast<compute_t<T>*>(lse);  // read only
    a.delta = of_rows.data();
    backward_plainly(a, stream);
  });
}

template <class T>
HeadsIn untyped(HeadsView<const T> view) {
  return {view.data, view.stride, view.sequence};
}
template <class T>
HeadsOut untyped(HeadsView<T> view) {
  return {view.data, view.stride, view.sequence};
}

#ifdef __CUDACC__

template <class... Parameters, class... Arguments>
void launch_attention(void (*kernel)(Parameters...), std::int64_t blocks, int threads, int shared_bytes,
                      cudaStream_t stream, const Arguments&... arguments) {
  if (blocks > INT_MAX)
    throw ConfigError(text("attention: ", blocks, " blocks are more than a GPU takes; use a smaller micro-batch"));
  if (shared_bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
               "shared memory for attention");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<unsigned>(shared_bytes),
           stream>>>(arguments...);
}

template <class T, class R>
void launch_plain(void (*kernel)(AttentionPlain<T, R>), std::int64_t rows, cudaStream_t stream,
                  const AttentionPlain<T, R>& a) {
  launch_attention(kernel, ceil_div(rows, plain_warps), plain_warps * 32, 0, stream, a);
}
template <class T, class R>
void forward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream) {
  launch_plain(attention_forward_plain<T, R>, a.s.batch * a.s.heads * a.s.context, stream, a);
}
template <class T, class R>
void backward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream) {
  const auto rows = a.s.batch * a.s.heads * a.s.context;
  launch_plain(attention_delta_plain<T, R>, rows, stream, a);
  launch_plain(attention_queries_plain<T, R>, rows, stream, a);
  launch_plain(attention_keys_plain<T, R>, a.s.batch * a.s.kv_heads * a.s.keys, stream, a);
}

template <class T, class R>
AttentionTiles<T, R> tiles_of(const AttentionCall& c) {
  AttentionTiles<T, R> a{};
  const auto in = [](HeadsIn from, std::int64_t rows) {
    return typename AttentionTiles<T, R>::In{static_cast<const T*>(from.data), from.stride,
                                             from.sequence ? from.sequence : rows * from.stride};
  };
  const auto out = [](HeadsOut to, std::int64_t rows) {
    return typename AttentionTiles<T, R>::Out{static_cast<R*>(to.data), to.stride,
                                              to.sequence ? to.sequence : rows * to.stride};
  };
  const auto keys = c.s.key_count();
  a.q = in(c.q, c.s.context), a.k = in(c.k, keys), a.v = in(c.v, keys), a.dout = in(c.dout, c.s.context);
  a.out = out(c.out, c.s.context), a.dq = out(c.dq, c.s.context), a.dk = out(c.dk, keys), a.dv = out(c.dv, keys);
  a.lse = c.lse;
  a.context = static_cast<int>(c.s.context), a.keys = static_cast<int>(keys);
  a.offset = static_cast<int>(c.s.offset);
  a.heads = static_cast<int>(c.s.heads), a.kv_heads = static_cast<int>(c.s.kv_heads);
  a.scale = 1 / std::sqrt(static_cast<float>(c.s.head_size));
  return a;
}

template <class Tile, class R>
void forward_with(const AttentionCall& c, cudaStream_t stream) {
  launch_attention(attention_forward_tiles<Tile, R>, c.s.batch * c.s.heads * ceil_div(c.s.context, Tile::queries),
                   Tile::threads, Tile::shared_bytes, stream, tiles_of<typename Tile::Element, R>(c));
}
template <class T, class R>
void forward_by_tiles(const AttentionCall& c, cudaStream_t stream) {
  if (c.s.head_size == 64) forward_with<ForwardTile<T, 64>, R>(c, stream);
  if (c.s.head_size == 128) forward_with<ForwardTile<T, 128>, R>(c, stream);
}

template <class Keys, class Queries, class R>
void backward_with(const AttentionCall& c, float* rows, cudaStream_t stream) {
  using T = typename Keys::Element;
  auto a = tiles_of<T, R>(c);
  const auto count = c.s.batch * c.s.heads * c.s.context;
  const typename AttentionTiles<T, R>::In out{
      static_cast<const T*>(c.saved_out.data), c.saved_out.stride,
      c.saved_out.sequence ? c.saved_out.sequence : c.s.context * c.saved_out.stride};
  launch_attention(attention_backward_rows<Keys::head_size, T, R>, ceil_div(count, 8), 256, 0, stream, a, out,
                   c.saved_lse, rows, count);
  a.rows = rows;
  launch_attention(attention_backward_keys<Keys, R>, c.s.batch * c.s.kv_heads * ceil_div(c.s.key_count(), Keys::keys),
                   Keys::threads, Keys::shared_bytes, stream, a);
  launch_attention(attention_backward_queries<Queries, R>,
                   c.s.batch * c.s.heads * ceil_div(c.s.context, Queries::queries), Queries::threads,
                   Queries::shared_bytes, stream, a);
}
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream) {
  if (c.s.head_size == 64) backward_with<KeyTile<T, 64>, QueryTile<T, 64>, R>(c, rows, stream);
  if (c.s.head_size == 128) backward_with<KeyTile<T, 128>, QueryTile<T, 128>, R>(c, rows, stream);
}

#endif

}  // namespace detail

template <CudaDevice D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  using detail::untyped;
  detail::check_whole_attention(s, q, k, v, out);
  if (s.batch * s.heads * s.context == 0) return;
  const auto cost = detail::attention_cost("attention", s, 2, sizeof(T));
  auto backend = AttentionBackend::plain;
  AttentionCall call{.s = s};
  if constexpr (is_half<T>) {
    auto& attention = device.template companion<CudaAttention>();
    call = AttentionCall{.s = s,
                         .type = dtype_of<T>,
                         .q = untyped(q),
                         .k = untyped(k),
                         .v = untyped(v),
                         .out = untyped(out),
                         .lse = lse};
    backend = attention.choose(call);
    if (backend == AttentionBackend::cudnn) {
      const auto bytes = static_cast<std::int64_t>(attention.workspace(call));
      const Tensor<std::byte, 1> workspace(device.pool(), {bytes}, Purpose::buffers);
      device.run(cost, [&](cudaStream_t stream) { attention.provider().run(call, workspace.data(), stream); });
      return;
    }
  }
  detail::own_attention_forward(device, cost, backend, call, q, k, v, out, lse);
}

/// Overwrites dq, dk, dv; the same bits every time (cuDNN: unless options.deterministic is off).
template <CudaDevice D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  using detail::untyped;
  detail::check_whole_attention(s, q, k, v, out, dout, dq, dk, dv);
  if (s.batch * s.heads * s.context == 0) return;
  const auto cost = detail::attention_cost("attention backward", s, 5, sizeof(T));
  auto backend = AttentionBackend::plain;
  AttentionCall call{.s = s};
  if constexpr (is_half<T>) {
    auto& attention = device.template companion<CudaAttention>();
    call = AttentionCall{.s = s,
                         .type = dtype_of<T>,
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
    backend = attention.choose(call);
    if (backend == AttentionBackend::cudnn) {
      const auto bytes = static_cast<std::int64_t>(attention.workspace(call));
      const Tensor<std::byte, 1> workspace(device.pool(), {bytes}, Purpose::buffers);
      device.run(cost, [&](cudaStream_t stream) { attention.provider().run(call, workspace.data(), stream); });
      return;
    }
  }
  detail::own_attention_backward(device, cost, backend, call, q, k, v, out, lse, dout, dq, dk, dv);
}

}  // namespace zeropp::kernels
