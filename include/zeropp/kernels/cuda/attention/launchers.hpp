// SPDX-License-Identifier: Apache-2.0
// Launchers of our own kernels of attention: by warpgroups, by tiles, or in the plain way. Declarations; launch.hpp
// defines them. Attention is more than half of a GPU program's kernels to compile: a program of several .cu files
// defines ZEROPP_ATTENTION_ELSEWHERE and compiles attention/instantiate.hpp in one more.
#pragma once

#include <zeropp/device/cuda/runtime.hpp>
#include <zeropp/kernels/cuda/attention/choice.hpp>
#include <zeropp/kernels/cuda/attention/plain.hpp>

namespace zeropp::kernels::detail {

/// T is what the call's type says, R the type of its results; rows: [B, H, T, 2]; counters: one forward, two backward.
template <class T, class R>
void forward_by_warpgroups(const AttentionCall& c, unsigned* counter, cudaStream_t stream);
template <class T, class R>
void backward_by_warpgroups(const AttentionCall& c, float* rows, unsigned* counters, cudaStream_t stream);
template <class T, class R>
void forward_by_tiles(const AttentionCall& c, cudaStream_t stream);
template <class T, class R>
void backward_by_tiles(const AttentionCall& c, float* rows, cudaStream_t stream);
template <class T, class R>
void forward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);
template <class T, class R>
void backward_plainly(const AttentionPlain<T, R>& a, cudaStream_t stream);

}  // namespace zeropp::kernels::detail

#if defined(__CUDACC__) && !defined(ZEROPP_ATTENTION_ELSEWHERE)
#include <zeropp/kernels/cuda/attention/launch.hpp>
#endif
