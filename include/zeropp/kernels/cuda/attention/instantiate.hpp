// SPDX-License-Identifier: Apache-2.0
// Our own kernels of attention for every type that computes. One .cu file of a program includes it where the other
// files define ZEROPP_ATTENTION_ELSEWHERE: attention is half of what nvcc compiles for an engine. The CMake target
// zeropp::attention is both, that file and that definition.
#pragma once

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/attention/launch.hpp>

#ifdef __CUDACC__

namespace zeropp::kernels::detail {

template bool warpgroups_compiled<Cuda>();

template void forward_plainly(const AttentionPlain<float, float>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<float, float>&, cudaStream_t);

template void forward_plainly(const AttentionPlain<double, double>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<double, double>&, cudaStream_t);

template void forward_plainly(const AttentionPlain<bf16, bf16>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<bf16, bf16>&, cudaStream_t);
template void forward_by_tiles<bf16, bf16>(const AttentionCall&, cudaStream_t);
template void backward_by_tiles<bf16, bf16>(const AttentionCall&, float*, cudaStream_t);
template void forward_by_warpgroups<bf16, bf16>(const AttentionCall&, unsigned*, cudaStream_t);
template void backward_by_warpgroups<bf16, bf16>(const AttentionCall&, float*, unsigned*, cudaStream_t);

template void forward_plainly(const AttentionPlain<bf16, float>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<bf16, float>&, cudaStream_t);
template void forward_by_tiles<bf16, float>(const AttentionCall&, cudaStream_t);
template void backward_by_tiles<bf16, float>(const AttentionCall&, float*, cudaStream_t);
template void forward_by_warpgroups<bf16, float>(const AttentionCall&, unsigned*, cudaStream_t);
template void backward_by_warpgroups<bf16, float>(const AttentionCall&, float*, unsigned*, cudaStream_t);

template void forward_plainly(const AttentionPlain<f16, f16>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<f16, f16>&, cudaStream_t);
template void forward_by_tiles<f16, f16>(const AttentionCall&, cudaStream_t);
template void backward_by_tiles<f16, f16>(const AttentionCall&, float*, cudaStream_t);
template void forward_by_warpgroups<f16, f16>(const AttentionCall&, unsigned*, cudaStream_t);
template void backward_by_warpgroups<f16, f16>(const AttentionCall&, float*, unsigned*, cudaStream_t);

template void forward_plainly(const AttentionPlain<f16, float>&, cudaStream_t);
template void backward_plainly(const AttentionPlain<f16, float>&, cudaStream_t);
template void forward_by_tiles<f16, float>(const AttentionCall&, cudaStream_t);
template void backward_by_tiles<f16, float>(const AttentionCall&, float*, cudaStream_t);
template void forward_by_warpgroups<f16, float>(const AttentionCall&, unsigned*, cudaStream_t);
template void backward_by_warpgroups<f16, float>(const AttentionCall&, float*, unsigned*, cudaStream_t);

}  // namespace zeropp::kernels::detail

#endif
