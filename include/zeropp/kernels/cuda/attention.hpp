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

#ifdef __CUDACC__

namespace detail {

/// Heads that are shared evenly, and no fields of shapes and views that these kernels don't know.
template <class Shape, class... Views>
void check_cuda_attention(const Shape& s, const Views&... views) {
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0)
    throw ConfigError(text("attention: ", s.heads, " query heads cannot share ", s.kv_heads, " key heads evenly"));
  if constexpr (requires { s.keys, s.offset; })
    if ((s.keys != 0 && s.keys != s.context) || s.offset != 0)
      throw ConfigError(text("attention on a GPU sees the keys of its own queries only, asked for ", s.keys,
                             " keys from query ", s.offset, " on; ring attention runs on the CPU"));
  const auto check = [&](const auto& view) {
    if constexpr (requires { view.sequence; })
      if (view.sequence != 0 && view.sequence != s.context * view.stride)
        throw ConfigError(text("attention on a GPU takes sequences one after the other, found ", view.sequence,
                               " elements between them instead of ", s.context * view.stride));
  };
  (check(views), ...);
}

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

template <class T>
void launch_plain(void (*kernel)(AttentionPlain<T>), std::int64_t rows, cudaStream_t stream,
                  const AttentionPlain<T>& a) {
  launch_attention(kernel, ceil_div(rows, plain_warps), plain_warps * 32, 0, stream, a);
}

/// T is what the call's type says.
template <class T>
AttentionTiles<T> tiles_of(const AttentionCall& c) {
  AttentionTiles<T> a{};
  const auto in = [](HeadsIn from) {
    return typename AttentionTiles<T>::In{static_cast<const T*>(from.data), from.stride};
  };
  const auto out = [](HeadsOut to) { return typename AttentionTiles<T>::Out{static_cast<T*>(to.data), to.stride}; };
  a.q = in(c.q), a.k = in(c.k), a.v = in(c.v), a.dout = in(c.dout);
  a.out = out(c.out), a.dq = out(c.dq), a.dk = out(c.dk), a.dv = out(c.dv);
  a.lse = c.lse;
  a.context = static_cast<int>(c.s.context);
  a.heads = static_cast<int>(c.s.heads), a.kv_heads = static_cast<int>(c.s.kv_heads);
  a.scale = 1 / std::sqrt(static_cast<float>(c.s.head_size));
  return a;
}

template <class Tile>
void forward_by_tiles(const AttentionCall& c, cudaStream_t stream) {
  launch_attention(attention_forward_tiles<Tile>, c.s.batch * c.s.heads * ceil_div(c.s.context, Tile::queries),
                   Tile::threads, Tile::shared_bytes, stream, tiles_of<typename Tile::Element>(c));
}

/// rows: [B, H, T, 2].
template <class Keys, class Queries>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream) {
  using T = typename Keys::Element;
  auto a = tiles_of<T>(c);
  const auto count = c.s.batch * c.s.heads * c.s.context;
  launch_attention(attention_backward_rows<Keys::head_size, T>, ceil_div(count, 8), 256, 0, stream, a,
                   static_cast<const T*>(c.saved_out.data), c.saved_out.stride, c.saved_lse, rows, count);
  a.rows = rows;
  launch_attention(attention_backward_keys<Keys>, c.s.batch * c.s.kv_heads * ceil_div(c.s.context, Keys::keys),
                   Keys::threads, Keys::shared_bytes, stream, a);
  launch_attention(attention_backward_queries<Queries>, c.s.batch * c.s.heads * ceil_div(c.s.context, Queries::queries),
                   Queries::threads, Queries::shared_bytes, stream, a);
}

}  // namespace detail

template <CudaDevice D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  detail::check_cuda_attention(s, q, k, v, out);
  const auto rows = s.batch * s.heads * s.context;
  if (rows == 0) return;
  const auto cost = detail::attention_cost("attention", s, 2, sizeof(T));
  if constexpr (is_half<T>) {
    auto& attention = device.template companion<CudaAttention>();
    const AttentionCall call{.s = s,
                             .type = dtype_of<T>,
                             .q = {q.data, q.stride},
                             .k = {k.data, k.stride},
                             .v = {v.data, v.stride},
                             .out = {out.data, out.stride},
                             .lse = lse};
    const auto backend = attention.choose(call);
    if (backend == AttentionBackend::cudnn) {
      const auto bytes = static_cast<std::int64_t>(attention.workspace(call));
      const Tensor<std::byte, 1> workspace(device.pool(), {bytes}, Purpose::buffers);
      device.run(cost, [&](cudaStream_t stream) { attention.provider().run(call, workspace.data(), stream); });
      return;
    }
    if (backend == AttentionBackend::tiles) {
      device.run(cost, [&](cudaStream_t stream) {
        if (s.head_size == 64) detail::forward_by_tiles<detail::ForwardTile<T, 64>>(call, stream);
        if (s.head_size == 128) detail::forward_by_tiles<detail::ForwardTile<T, 128>>(call, stream);
      });
      return;
    }
  }
  device.run(cost, [&](cudaStream_t stream) {
    detail::AttentionPlain<T> a{};
    a.s = s, a.q = q, a.k = k, a.v = v, a.to = out, a.lse = lse;
    a.scale = 1 / std::sqrt(static_cast<compute_t<T>>(s.head_size));
    detail::launch_plain(detail::attention_forward_plain<T>, rows, stream, a);
  });
}

/// Overwrites dq, dk, dv; the same bits every time (cuDNN: unless options.deterministic is off).
template <CudaDevice D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  detail::check_cuda_attention(s, q, k, v, out, dout, dq, dk, dv);
  const auto rows = s.batch * s.heads * s.context;
  if (rows == 0) return;
  const auto cost = detail::attention_cost("attention backward", s, 5, sizeof(T));
  if constexpr (is_half<T>) {
    auto& attention = device.template companion<CudaAttention>();
    const AttentionCall call{.s = s,
                             .type = dtype_of<T>,
                             .q = {q.data, q.stride},
                             .k = {k.data, k.stride},
                             .v = {v.data, v.stride},
                             .out = {},
                             .saved_out = {out.data, out.stride},
                             .dout = {dout.data, dout.stride},
                             .saved_lse = lse,
                             .dq = {dq.data, dq.stride},
                             .dk = {dk.data, dk.stride},
                             .dv = {dv.data, dv.stride},
                             .deterministic = attention.options.deterministic};
    const auto backend = attention.choose(call);
    if (backend == AttentionBackend::cudnn) {
      const auto bytes = static_cast<std::int64_t>(attention.workspace(call));
      const Tensor<std::byte, 1> workspace(device.pool(), {bytes}, Purpose::buffers);
      device.run(cost, [&](cudaStream_t stream) { attention.provider().run(call, workspace.data(), stream); });
      return;
    }
    if (backend == AttentionBackend::tiles) {
      const Tensor<float, 1> of_rows(device.pool(), {2 * rows}, Purpose::buffers);
      device.run(cost, [&](cudaStream_t stream) {
        using detail::KeyTile, detail::QueryTile, detail::backward_by_tiles;
        if (s.head_size == 64) backward_by_tiles<KeyTile<T, 64>, QueryTile<T, 64>>(call, of_rows.data(), stream);
        if (s.head_size == 128) backward_by_tiles<KeyTile<T, 128>, QueryTile<T, 128>>(call, of_rows.data(), stream);
      });
      return;
    }
  }
  const Tensor<compute_t<T>, 1> delta(device.pool(), {rows}, Purpose::buffers);
  device.run(cost, [&](cudaStream_t stream) {
    detail::AttentionPlain<T> a{};
    a.s = s, a.q = q, a.k = k, a.v = v, a.out = out, a.dout = dout, a.to = dq, a.dk = dk, a.dv = dv;
    a.lse = const_cast<compute_t<T>*>(lse);  // read only
    a.delta = delta.data();
    a.scale = 1 / std::sqrt(static_cast<compute_t<T>>(s.head_size));
    detail::launch_plain(detail::attention_delta_plain<T>, rows, stream, a);
    detail::launch_plain(detail::attention_queries_plain<T>, rows, stream, a);
    detail::launch_plain(detail::attention_keys_plain<T>, s.batch * s.kv_heads * s.context, stream, a);
  });
}

#endif

}  // namespace zeropp::kernels
