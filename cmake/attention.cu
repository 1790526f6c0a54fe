// SPDX-License-Identifier: Apache-2.0
// The kernels of attention of a program: see the target zeropp::attention.
#include <zeropp/kernels/cuda/attention/instantiate.hpp>
