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
#include <zeropp/kernels/cuda/attention/warpgroup_backward.hpp>

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

/// T is what the call's type says, R the type of its results; rows: [B, H, T, 2] and two more.
template <class T, class R>
void forward_by_tiles(const AttentionCall& c, cudaStream_t stream);
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream);
template <class T, class R>
void forward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);
template <class T, class R>
void backward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);

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

/// Of whole sequences, or over a part of the keys (AttentionCall::part) with results of the type R that computes.
template <CudaDevice D, class T, class R>
void gpu_attention_forward(D& device, bool part, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                           HeadsView<const T> v, HeadsView<R> out, compute_t<T>* lse) {
  const auto rows = s.batch * s.heads * s.context;
  if (rows == 0) return;
  q = with_sequence(q, s.context), out = with_sequence(out, s.context);
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
  const auto rows = s.batch * s.heads * s.context;
  if (rows == 0) return;
  q = with_sequence(q, s.context), out = with_sequence(out, s.context);
  dout = with_sequence(dout, s.context), dq = with_sequence(dq, s.context);
  k = with_sequence(k, s.key_count()), v = with_sequence(v, s.key_count());
  dk = with_sequence(dk, s.key_count()), dv = with_sequence(dv, s.key_count());
  const auto cost = attention_cost("attention backward", s, 5, sizeof(T));
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
    if (backend == AttentionBackend::tiles) {
      const Tensor<float, 1> of_rows(device.pool(), {2 * rows + 2}, Purpose::buffers);
      return device.run(cost, [&](cudaStream_t stream) { backward_by_tiles<T, R>(call, of_rows.data(), stream); });
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
typename AttentionTiles<T, R>::In tiles_in(HeadsIn from) {
  return {static_cast<const T*>(from.data), from.stride, from.sequence};
}
template <class T, class R>
AttentionTiles<T, R> tiles_of(const AttentionCall& c) {
  AttentionTiles<T, R> a{};
  const auto out = [](HeadsOut to) {
    return typename AttentionTiles<T, R>::Out{static_cast<R*>(to.data), to.stride, to.sequence};
  };
  a.q = tiles_in<T, R>(c.q), a.k = tiles_in<T, R>(c.k), a.v = tiles_in<T, R>(c.v), a.dout = tiles_in<T, R>(c.dout);
  a.out = out(c.out), a.dq = out(c.dq), a.dk = out(c.dk), a.dv = out(c.dv);
  a.lse = c.lse;
  a.context = static_cast<int>(c.s.context), a.keys = static_cast<int>(c.s.key_count());
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
  launch_attention(attention_backward_rows<Keys::head_size, T, R>, ceil_div(count, 8), 256, 0, stream, a,
                   tiles_in<T, R>(c.saved_out), c.saved_lse, rows, count);
  a.rows = rows;
  launch_attention(attention_backward_keys<Keys, R>, c.s.batch * c.s.kv_heads * ceil_div(c.s.key_count(), Keys::keys),
                   Keys::threads, Keys::shared_bytes, stream, a);
  launch_attention(attention_backward_queries<Queries, R>,
                   c.s.batch * c.s.heads * ceil_div(c.s.context, Queries::queries), Queries::threads,
                   Queries::shared_bytes, stream, a);
}

/// Whether a kernel was compiled for warpgroups: without them its body is empty, and has no barriers in shared memory.
template <class Kernel>
bool has_warpgroups(Kernel* kernel) {
  static const bool has = [&] {
    cudaFuncAttributes found{};
    cuda_check(cudaFuncGetAttributes(&found, kernel), "cudaFuncGetAttributes");
    return found.sharedSizeBytes > 0;
  }();
  return has;
}
template <class Tile, class R>
void backward_of(const AttentionCall& c, const AttentionTiles<typename Tile::Element, R>& a, unsigned* counter,
                 cudaStream_t stream) {
  const auto map = [&](HeadsIn heads, bool of_keys) {
    return tensor_map(heads.data, heads.stride, heads.sequence, c.s.batch, of_keys ? c.s.key_count() : c.s.context,
                      of_keys ? c.s.kv_heads : c.s.heads, Tile::head_size,
                      of_keys == Tile::owns_keys ? Tile::own : Tile::moving);
  };
  WarpgroupMaps maps{{map(c.q, false), map(c.dout, false)}, {map(c.k, true), map(c.v, true)}};
  if (Tile::owns_keys) std::swap(maps.own, maps.moving);
  const auto pieces = c.s.batch * (Tile::owns_keys ? c.s.kv_heads * ceil_div(c.s.key_count(), Tile::own)
                                                   : c.s.heads * ceil_div(c.s.context, Tile::own));
  if (pieces > INT_MAX / 2)
    throw ConfigError(text("attention: ", pieces, " blocks are more than a GPU takes; use a smaller micro-batch"));
  int device = 0, multiprocessors = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  launch_attention(attention_backward_warpgroups<Tile, R>, std::min<std::int64_t>(pieces, multiprocessors),
                   Tile::threads, Tile::shared_bytes, stream, a, maps, counter, static_cast<int>(pieces));
}
template <class Keys, class Queries, class R>
void backward_by_warpgroups(const AttentionCall& c, float* rows, cudaStream_t stream) {
  using T = typename Keys::Element;
  auto a = tiles_of<T, R>(c);
  const auto count = c.s.batch * c.s.heads * c.s.context;
  launch_attention(attention_backward_rows<Keys::head_size, T, R>, ceil_div(count, 8), 256, 0, stream, a,
                   tiles_in<T, R>(c.saved_out), c.saved_lse, rows, count);
  a.rows = rows;
  auto* const counters = reinterpret_cast<unsigned*>(rows + 2 * count);
  backward_of<Keys, R>(c, a, counters, stream);
  backward_of<Queries, R>(c, a, counters + 1, stream);
}
template <class T, int D, class R>
void backward_of_heads(const AttentionCall& c, float* rows, cudaStream_t stream) {
  if (has_warpgroups(attention_backward_warpgroups<WarpgroupTile<T, D, true>, R>))
    backward_by_warpgroups<WarpgroupTile<T, D, true>, WarpgroupTile<T, D, false>, R>(c, rows, stream);
  else
    backward_with<KeyTile<T, D>, QueryTile<T, D>, R>(c, rows, stream);
}
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream) {
  if (c.s.head_size == 64) backward_of_heads<T, 64, R>(c, rows, stream);
  if (c.s.head_size == 128) backward_of_heads<T, 128, R>(c, rows, stream);
}

#endif

}  // namespace detail

template <CudaDevice D, class T>
void causal_attention_forward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                              HeadsView<const T> v, HeadsView<T> out, compute_t<T>* lse) {
  detail::check_whole_attention(s, q, k, v, out);
  detail::gpu_attention_forward(device, false, s, q, k, v, out, lse);
}

/// Overwrites dq, dk, dv; the same bits every time (cuDNN: unless options.deterministic is off).
template <CudaDevice D, class T>
void causal_attention_backward(D& device, const AttentionShape& s, HeadsView<const T> q, HeadsView<const T> k,
                               HeadsView<const T> v, HeadsView<const T> out, const compute_t<T>* lse,
                               HeadsView<const T> dout, HeadsView<T> dq, HeadsView<T> dk, HeadsView<T> dv) {
  detail::check_whole_attention(s, q, k, v, out, dout, dq, dk, dv);
  detail::gpu_attention_backward(device, false, s, q, k, v, out, lse, dout, dq, dk, dv);
}

}  // namespace zeropp::kernels
