// SPDX-License-Identifier: Apache-2.0
// The operations that an optimizer's rule is written in, for the numbers that it may meet: vectors of a register on the
// CPU, single numbers on a GPU (cuda/rounded.hpp). One text of a rule serves both.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include <zeropp/kernels/vector.hpp>

namespace zeropp::kernels {

/// Whether V is a number whose every operation is rounded once: a GPU's.
template <class V>
inline constexpr bool rounds_once = false;

/// a·b + c: rounded once on a GPU. On the CPU the compiler chooses which products and sums it fuses, the same for every
/// element.
template <class V, class B, class C>
  requires(!rounds_once<V>)
constexpr V fused(const V& a, const B& b, const C& c) {
  return a * b + c;
}

/// a·x + b·y.
template <class V, class B>
  requires(!rounds_once<V>)
constexpr V mixed(const V& a, const B& x, const V& b, const B& y) {
  return a * x + b * y;
}

/// √a, correctly rounded. By instruction on vectors: std::sqrt may set errno, which keeps compilers from vectorising.
template <class V>
  requires(!rounds_once<V>)
constexpr V square_root(V a) {
  if constexpr (std::is_floating_point_v<V>) {
    return std::sqrt(a);
#if defined(__AVX__)
  } else if constexpr (std::is_same_v<V, Vector<float>>) {
    asm("vsqrtps %0, %0" : "+v"(a));
  } else if constexpr (std::is_same_v<V, Vector<double>>) {
    asm("vsqrtpd %0, %0" : "+v"(a));
#elif defined(__SSE2__)
  } else if constexpr (std::is_same_v<V, Vector<float>>) {
    asm("sqrtps %0, %0" : "+x"(a));
  } else if constexpr (std::is_same_v<V, Vector<double>>) {
    asm("sqrtpd %0, %0" : "+x"(a));
#endif
  } else {
    for (std::size_t i = 0; i < sizeof(V) / sizeof a[0]; ++i) a[i] = std::sqrt(a[i]);
  }
  return a;
}

/// -1, 0 or 1.
template <class V>
  requires(!rounds_once<V>)
constexpr V sign(const V& a) {
  if constexpr (std::is_floating_point_v<V>)
    return static_cast<V>((a > 0) - (a < 0));
  else
    return __builtin_convertvector((a < 0) - (a > 0), V);  // a comparison that holds is -1
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/rounded.hpp>
#endif
