// SPDX-License-Identifier: Apache-2.0
// The one source file of a program that gives it attention by cuDNN.
#include <zeropp/kernels/cuda/cudnn_attention.hpp>
