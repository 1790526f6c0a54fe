// SPDX-License-Identifier: Apache-2.0
// kernels/partial_attention.hpp on a GPU: not there yet, which layers ask before they call.
#pragma once

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/partial_attention.hpp>

namespace zeropp::kernels {

template <CudaDevice D>
inline constexpr bool attends_in_parts<D> = false;

}  // namespace zeropp::kernels
