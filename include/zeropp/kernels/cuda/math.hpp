// SPDX-License-Identifier: Apache-2.0
// Activations on a GPU. In float within 4 ulp of the larger of the result and its argument, by the instructions for 2^x
// and 1/x; in double they are the library's.
#pragma once

#ifdef __CUDACC__
#include <cmath>

namespace zeropp::kernels::detail {

__device__ __forceinline__ float logistic(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
__device__ __forceinline__ double logistic(double x) { return 1 / (1 + ::exp(-x)); }

// tanh(u) = 2 σ(2u) - 1 turns x/2 · (1 + tanh(u)) into x · σ(2u), without cancellation for negative x.
template <class C>
__device__ __forceinline__ C gelu(C x) {
  return x * logistic(C(2 * 0.79788456080286535588) * (x + C(0.044715) * x * x * x));
}
template <class C>
__device__ __forceinline__ C gelu_slope(C x) {
  constexpr C a = C(2 * 0.79788456080286535588), b = C(0.044715);
  const C s = logistic(a * (x + b * x * x * x));
  return s + x * s * (1 - s) * a * (1 + 3 * b * x * x);
}

}  // namespace zeropp::kernels::detail
#endif
