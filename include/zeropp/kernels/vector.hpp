// SPDX-License-Identifier: Apache-2.0
// Vectors of the target's register size, by the vector extensions of GCC and Clang: loads and stores of any storage
// type (bf16 and f16 convert to float and back), and the transposition of a square block.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <zeropp/base/dtype.hpp>

#ifdef __CUDACC__  // its front end does not know GCC's unroll pragma, and says so
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif

namespace zeropp::kernels {

#if defined(__AVX512F__)
inline constexpr int register_bytes = 64, register_count = 32;
#elif defined(__AVX__)
inline constexpr int register_bytes = 32, register_count = 16;
#elif defined(__aarch64__)
inline constexpr int register_bytes = 16, register_count = 32;
#else
inline constexpr int register_bytes = 16, register_count = 16;
#endif

/// Elements of the compute type C in one register.
template <class C>
inline constexpr int lanes = register_bytes / static_cast<int>(sizeof(C));

namespace detail {
template <class C, int N>
struct VectorType {
  typedef C type __attribute__((vector_size(N * sizeof(C))));
};
}  // namespace detail

/// N elements of C; N is a power of two, at most lanes<C>.
template <class C, int N = lanes<C>>
using Vector = typename detail::VectorType<C, N>::type;

namespace detail {

/// To and from f16, by instruction where there is one for so many: the bits of f16 itself.
template <int N>
inline Vector<float, N> from_f16(const f16* from, std::integral_constant<int, N>) {
  Vector<float, N> out{};
  for (int i = 0; i < N; ++i) out[i] = from[i];
  return out;
}
template <int N>
inline void to_f16(f16* to, const Vector<float, N>& v, std::integral_constant<int, N>) {
  for (int i = 0; i < N; ++i) to[i] = f16(v[i]);
}
// Instructions are written as such here and elsewhere in kernels/: the header of intrinsics takes as long to compile as
// a quarter of the standard library.
#if defined(__F16C__)
using Halves = Vector<std::uint16_t, 8>;  // a register of 16 bytes
inline Vector<float, 4> from_f16(const f16* from, std::integral_constant<int, 4>) {
  Halves half{};
  std::memcpy(&half, from, 8);
  Vector<float, 4> out;
  asm("vcvtph2ps %1, %0" : "=x"(out) : "x"(half));
  return out;
}
inline Vector<float, 8> from_f16(const f16* from, std::integral_constant<int, 8>) {
  Halves half;
  std::memcpy(&half, from, sizeof half);
  Vector<float, 8> out;
  asm("vcvtph2ps %1, %0" : "=x"(out) : "x"(half));
  return out;
}
inline void to_f16(f16* to, const Vector<float, 4>& v, std::integral_constant<int, 4>) {
  Halves half;
  asm("vcvtps2ph $0, %1, %0" : "=x"(half) : "x"(v));  // $0: to nearest even
  std::memcpy(static_cast<void*>(to), &half, 8);
}
inline void to_f16(f16* to, const Vector<float, 8>& v, std::integral_constant<int, 8>) {
  Halves half;
  asm("vcvtps2ph $0, %1, %0" : "=x"(half) : "x"(v));
  std::memcpy(static_cast<void*>(to), &half, sizeof half);
}
#endif
#if defined(__F16C__) && defined(__AVX512F__)
inline Vector<float, 16> from_f16(const f16* from, std::integral_constant<int, 16>) {
  Vector<std::uint16_t, 16> half;
  std::memcpy(&half, from, sizeof half);
  Vector<float, 16> out;
  asm("vcvtph2ps %1, %0" : "=v"(out) : "v"(half));
  return out;
}
inline void to_f16(f16* to, const Vector<float, 16>& v, std::integral_constant<int, 16>) {
  Vector<std::uint16_t, 16> half;
  asm("vcvtps2ph $0, %1, %0" : "=v"(half) : "v"(v));
  std::memcpy(static_cast<void*>(to), &half, sizeof half);
}
#endif

}  // namespace detail

/// N elements from anywhere in memory.
template <int N, class T>
inline auto load(const T* from) {
  if constexpr (std::is_same_v<T, bf16>) {
    Vector<std::uint16_t, N> half;
    std::memcpy(&half, from, sizeof half);
    return std::bit_cast<Vector<float, N>>(__builtin_convertvector(half, Vector<std::uint32_t, N>) << 16);
  } else if constexpr (std::is_same_v<T, f16>) {
    return detail::from_f16(from, std::integral_constant<int, N>{});
  } else {
    Vector<T, N> v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
}

/// Stores N elements anywhere in memory; into bf16 and f16 rounding to nearest even, as these do themselves.
template <int N, class C, class T>
inline void store(T* to, const Vector<C, N>& v) {
  if constexpr (std::is_same_v<T, bf16>) {
    using Bits = Vector<std::uint32_t, N>;
    const auto bits = std::bit_cast<Bits>(v);
    const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, nan = bits >> 16 | 0x40u;
    const Bits chosen = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
    const auto half = __builtin_convertvector(chosen, Vector<std::uint16_t, N>);
    std::memcpy(static_cast<void*>(to), &half, sizeof half);
  } else if constexpr (std::is_same_v<T, f16>) {
    detail::to_f16(to, v, std::integral_constant<int, N>{});
  } else {
    std::memcpy(to, &v, sizeof v);
  }
}

namespace detail {

template <int Step, class V, int... I>
inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
#ifdef __CUDACC__  // nvcc does not hand packs on to the builtin; the same elements, one by one
  V low = a, high = b;
  for (int i = 0; i < n; ++i)
    if (i & Step)
      low[i] = b[i - Step];
    else
      high[i] = a[i + Step];
  a = low, b = high;
#else
  const V low = __builtin_shufflevector(a, b, ((I & Step) ? n + I - Step : I)...);
  b = __builtin_shufflevector(a, b, ((I & Step) ? n + I : I + Step)...);
  a = low;
#endif
}

}  // namespace detail

/// Transposes N rows of N elements, in log2 N rounds of exchanges between rows.
template <std::size_t N, class V, int Step = static_cast<int>(N / 2)>
inline void transpose(V (&rows)[N]) {
  if constexpr (Step > 0) {
    constexpr int n = static_cast<int>(N);
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      if (!(i & Step)) detail::exchange<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, n>{});
    transpose<N, V, Step / 2>(rows);
  }
}

}  // namespace zeropp::kernels

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
