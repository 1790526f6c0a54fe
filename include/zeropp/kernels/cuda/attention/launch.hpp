// SPDX-License-Identifier: Apache-2.0
// Starts our own kernels of attention: the definitions of launchers.hpp, for nvcc.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <utility>

#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/attention/choice.hpp>
#include <zeropp/kernels/cuda/attention/launchers.hpp>
#include <zeropp/kernels/cuda/attention/plain.hpp>
#include <zeropp/kernels/cuda/attention/tiles_backward.hpp>
#include <zeropp/kernels/cuda/attention/tiles_forward.hpp>
#include <zeropp/kernels/cuda/attention/warpgroup_backward.hpp>
#include <zeropp/kernels/cuda/attention/warpgroup_forward.hpp>

namespace zeropp::kernels::detail {

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
  launch_plain(attention_forward_plain<T, R>, a.s.batch * a.s.heads * a.s.sequence, stream, a);
}
template <class T, class R>
void backward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream) {
  const auto rows = a.s.batch * a.s.heads * a.s.sequence;
  launch_plain(attention_delta_plain<T, R>, rows, stream, a);
  launch_plain(attention_queries_plain<T, R>, rows, stream, a);
  launch_plain(attention_keys_plain<T, R>, a.s.batch * a.s.kv_heads * a.s.keys, stream, a);
}

template <class T, class R>
AttentionTiles<T, R> tiles_of(const AttentionCall& c) {
  AttentionTiles<T, R> a{};
  const auto in = [](HeadsIn from) {
    return typename AttentionTiles<T, R>::In{static_cast<const T*>(from.data), from.stride, from.sequence};
  };
  const auto out = [](HeadsOut to) {
    return typename AttentionTiles<T, R>::Out{static_cast<R*>(to.data), to.stride, to.sequence};
  };
  a.q = in(c.q), a.k = in(c.k), a.v = in(c.v), a.saved_out = in(c.saved_out), a.dout = in(c.dout);
  a.out = out(c.out), a.dq = out(c.dq), a.dk = out(c.dk), a.dv = out(c.dv);
  a.lse = c.lse, a.saved_lse = c.saved_lse;
  a.sequence = static_cast<int>(c.s.sequence), a.keys = static_cast<int>(c.s.key_count());
  a.offset = static_cast<int>(c.s.offset);
  a.heads = static_cast<int>(c.s.heads), a.kv_heads = static_cast<int>(c.s.kv_heads);
  a.scale = 1 / std::sqrt(static_cast<float>(c.s.head_size));
  return a;
}

/// One block for as many rows as a tile owns.
template <class Tile, class R>
void forward_with(const AttentionCall& c, cudaStream_t stream) {
  launch_attention(attention_forward_tiles<Tile, R>, c.s.batch * c.s.heads * ceil_div(c.s.sequence, Tile::queries),
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
  a.rows = rows;
  const auto count = c.s.batch * c.s.heads * c.s.sequence;
  launch_attention(attention_backward_rows<Keys::head_size, T, R>, ceil_div(count, 2048 / Keys::head_size), 256, 0,
                   stream, a, count);
  launch_attention(attention_backward_keys<Keys, R>, c.s.batch * c.s.kv_heads * ceil_div(c.s.key_count(), Keys::keys),
                   Keys::threads, Keys::shared_bytes, stream, a);
  launch_attention(attention_backward_queries<Queries, R>,
                   c.s.batch * c.s.heads * ceil_div(c.s.sequence, Queries::queries), Queries::threads,
                   Queries::shared_bytes, stream, a);
}
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream) {
  if (c.s.head_size == 64) backward_with<KeyTile<T, 64>, QueryTile<T, 64>, R>(c, rows, stream);
  if (c.s.head_size == 128) backward_with<KeyTile<T, 128>, QueryTile<T, 128>, R>(c, rows, stream);
}

/// A kernel by warpgroups has barriers in its shared memory; compiled for something else than sm_90a it has none.
template <class D>
bool warpgroups_compiled() {
  cudaFuncAttributes found{};
  cuda_check(cudaFuncGetAttributes(&found, attention_forward_warpgroups<ForwardWarpgroups<bf16, 64>, bf16>),
             "looking up attention by warpgroups in this program, which must be compiled for this GPU "
             "(CMAKE_CUDA_ARCHITECTURES),");
  return found.sharedSizeBytes > 0;
}

/// Starts a kernel by warpgroups; `counter`: of its pieces, 0.
template <class Tile, class Kernel, class R>
void launch_warpgroups(Kernel* kernel, const AttentionCall& c, const AttentionTiles<typename Tile::Element, R>& a,
                       unsigned* counter, cudaStream_t stream) {
  const auto map = [&](HeadsIn heads, bool of_keys) {
    return tensor_map(heads.data, heads.stride, heads.sequence, c.s.batch, of_keys ? c.s.key_count() : c.s.sequence,
                      of_keys ? c.s.kv_heads : c.s.heads, Tile::head_size,
                      of_keys == Tile::owns_keys ? Tile::own : Tile::moving);
  };
  int device = 0, multiprocessors = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  const auto blocks = ceil_div(Tile::owns_keys ? c.s.key_count() : c.s.sequence, Tile::own);
  const auto pieces = c.s.batch * (Tile::owns_keys ? c.s.kv_heads : c.s.heads) * blocks;
  if (pieces > INT_MAX / 2)
    throw ConfigError(text("attention: ", pieces, " blocks are more than a GPU takes; use a smaller micro-batch"));
  WarpgroupWork work{};
  work.own[0] = map(c.q, false), work.moving[0] = map(c.k, true), work.moving[1] = map(c.v, true);
  if (c.backward()) work.own[1] = map(c.dout, false);
  if (Tile::owns_keys) std::swap(work.own, work.moving);
  work.counter = counter, work.pieces = static_cast<int>(pieces);
  // The last pieces should be short ones; where a block has few of them that counts more than heads in the L2 cache.
  const std::int64_t rounds = pieces < std::int64_t{20} * multiprocessors ? 4 : 1;
  work.together = static_cast<int>(ceil_div(rounds * multiprocessors, blocks));
  launch_attention(kernel, std::min<std::int64_t>(pieces, multiprocessors), Tile::threads, Tile::shared_bytes, stream,
                   a, work);
}
template <class T, int D, class R>
void forward_of(const AttentionCall& c, unsigned* counter, cudaStream_t stream) {
  using Tile = ForwardWarpgroups<T, D>;
  launch_warpgroups<Tile>(attention_forward_warpgroups<Tile, R>, c, tiles_of<T, R>(c), counter, stream);
}
template <class T, int D, class R>
void backward_of(const AttentionCall& c, float* rows, unsigned* counters, cudaStream_t stream) {
  using Queries = QueryWarpgroups<T, D>;
  using Keys = KeyWarpgroups<T, D>;
  auto a = tiles_of<T, R>(c);
  a.rows = rows;
  launch_warpgroups<Queries>(attention_backward_warpgroups<Queries, R>, c, a, counters, stream);
  launch_warpgroups<Keys>(attention_backward_warpgroups<Keys, R>, c, a, counters + 1, stream);
}
template <class T, class R>
void forward_by_warpgroups(const AttentionCall& c, unsigned* counter, cudaStream_t stream) {
  cuda_check(cudaMemsetAsync(counter, 0, sizeof *counter, stream), "cudaMemsetAsync");
  if (c.s.head_size == 64) forward_of<T, 64, R>(c, counter, stream);
  if (c.s.head_size == 128) forward_of<T, 128, R>(c, counter, stream);
}
template <class T, class R>
void backward_by_warpgroups(const AttentionCall& c, float* rows, unsigned* counters, cudaStream_t stream) {
  cuda_check(cudaMemsetAsync(counters, 0, 2 * sizeof *counters, stream), "cudaMemsetAsync");
  if (c.s.head_size == 64) backward_of<T, 64, R>(c, rows, counters, stream);
  if (c.s.head_size == 128) backward_of<T, 128, R>(c, rows, counters, stream);
}

#endif

}  // namespace zeropp::kernels::detail
