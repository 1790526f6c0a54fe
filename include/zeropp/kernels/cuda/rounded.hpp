// SPDX-License-Identifier: Apache-2.0
// Numbers on a GPU for the rules of optimizers, with the operations of kernels/arithmetic.hpp.
#pragma once

#include <cmath>
#include <type_traits>

#include <zeropp/kernels/arithmetic.hpp>

namespace zeropp::kernels {

/// A number on a GPU whose every operation is rounded once: compilers fuse a product and a sum only where the rule says
/// `fused`. So an element's bits do not depend on the code around it.
template <class C>
struct Rounded {
  C value;
  constexpr Rounded(C v) : value(v) {}

  friend constexpr Rounded operator+(Rounded a, Rounded b) {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same_v<C, float>)
      return __fadd_rn(a.value, b.value);
    else
      return __dadd_rn(a.value, b.value);
#else
    return a.value + b.value;
#endif
  }
  friend constexpr Rounded operator*(Rounded a, Rounded b) {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same_v<C, float>)
      return __fmul_rn(a.value, b.value);
    else
      return __dmul_rn(a.value, b.value);
#else
    return a.value * b.value;
#endif
  }
  friend constexpr Rounded operator/(Rounded a, Rounded b) {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same_v<C, float>)
      return __fdiv_rn(a.value, b.value);
    else
      return __ddiv_rn(a.value, b.value);
#else
    return a.value / b.value;
#endif
  }
  friend constexpr Rounded operator-(Rounded a) { return -a.value; }
  friend constexpr Rounded operator-(Rounded a, Rounded b) { return a + -b; }
};

template <class C>
inline constexpr bool rounds_once<Rounded<C>> = true;

template <class C>
constexpr Rounded<C> fused(Rounded<C> a, std::type_identity_t<Rounded<C>> b, std::type_identity_t<Rounded<C>> c) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<C, float>)
    return __fmaf_rn(a.value, b.value, c.value);
  else
    return __fma_rn(a.value, b.value, c.value);
#else
  return a.value * b.value + c.value;
#endif
}

template <class C>
constexpr Rounded<C> mixed(Rounded<C> a, std::type_identity_t<Rounded<C>> x, Rounded<C> b,
                           std::type_identity_t<Rounded<C>> y) {
  return fused(b, y, a * x);
}

template <class C>
constexpr Rounded<C> square_root(Rounded<C> a) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<C, float>)
    return __fsqrt_rn(a.value);
  else
    return __dsqrt_rn(a.value);
#else
  return std::sqrt(a.value);
#endif
}

template <class C>
constexpr Rounded<C> sign(Rounded<C> a) {
  return static_cast<C>((a.value > 0) - (a.value < 0));
}

}  // namespace zeropp::kernels
