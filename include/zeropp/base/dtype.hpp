// SPDX-License-Identifier: Apache-2.0
// Element types: bf16 as storage, the names and sizes of all of them, what is kept of fp32 masters beside weights of 16
// bits, and stochastic rounding.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <zeropp/base/f16.hpp>

namespace zeropp {

/// The upper half of a float. Storage only: it converts to float to compute, and from float rounding to nearest even.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  constexpr explicit bf16(float value) {
    auto b = std::bit_cast<std::uint32_t>(value);
    if ((b & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<std::uint16_t>(b >> 16 | 0x40u);  // NaN stays NaN: rounding could carry it into infinity
    else
      bits = static_cast<std::uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
  }
  constexpr operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  constexpr bf16& operator+=(float value) { return *this = bf16(*this + value); }
};

/// `value` rounded up in magnitude with the probability of the fraction that bf16 drops, otherwise down: right on
/// average where `random` is uniform over its 65,536 values. Values that bf16 holds exactly, infinities among them,
/// stay.
constexpr bf16 rounded_stochastically(float value, std::uint16_t random) {
  const auto b = std::bit_cast<std::uint32_t>(value);
  bf16 out;
  out.bits = static_cast<std::uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : (b + random) >> 16);
  return out;
}

/// A float32 master weight kept in 2 + 2 bytes: `weight` is the master rounded to nearest, ties away from zero, and the
/// remainder restores it exactly for every bit pattern: bits = (weight << 16) + remainder. (With ties to even the
/// remainder could be +32768, which does not fit.)
struct SplitMaster {
  using Kept = std::int16_t;
  bf16 weight;
  Kept remainder = 0;

  static constexpr SplitMaster from(float master) {
    auto b = std::bit_cast<std::uint32_t>(master);
    SplitMaster split;
    split.weight.bits = static_cast<std::uint16_t>((b + 0x8000u) >> 16);
    split.remainder = static_cast<std::int16_t>(static_cast<std::uint16_t>(b));
    return split;
  }
  constexpr float master() const {
    auto high = static_cast<std::uint32_t>(weight.bits) << 16;
    return std::bit_cast<float>(high + static_cast<std::uint32_t>(static_cast<std::int32_t>(remainder)));
  }
};

/// A float32 master weight kept whole beside the f16 that it is rounded to, in 2 + 4 bytes: an f16 holds neither the
/// exponents nor the NaNs of floats, so no 16 bits beside it would restore them.
struct WholeMaster {
  using Kept = float;
  f16 weight;
  Kept whole = 0;

  static constexpr WholeMaster from(float master) { return {f16(master), master}; }
  constexpr float master() const { return whole; }
};

/// Weights that are their own masters: nothing lies beside them.
struct NoMaster {
  using Kept = std::int16_t;
};

/// How a fp32 master of weights of type W is kept, and what of it lies beside them.
template <class W>
using master_of_t = std::conditional_t<std::is_same_v<W, bf16>, SplitMaster,
                                       std::conditional_t<std::is_same_v<W, f16>, WholeMaster, NoMaster>>;
template <class W>
using kept_t = typename master_of_t<W>::Kept;
template <class W>
inline constexpr bool has_master = !std::is_same_v<master_of_t<W>, NoMaster>;

enum class DType : std::uint8_t { f64, f32, bf16, f16, i64, i32, i16, u16, u8 };

template <class T>
struct dtype_of_t;
template <DType D>
struct dtype_is {
  static constexpr DType value = D;
};
template <>
struct dtype_of_t<double> : dtype_is<DType::f64> {};
template <>
struct dtype_of_t<float> : dtype_is<DType::f32> {};
template <>
struct dtype_of_t<bf16> : dtype_is<DType::bf16> {};
template <>
struct dtype_of_t<f16> : dtype_is<DType::f16> {};
template <>
struct dtype_of_t<std::int64_t> : dtype_is<DType::i64> {};
template <>
struct dtype_of_t<std::int32_t> : dtype_is<DType::i32> {};
template <>
struct dtype_of_t<std::int16_t> : dtype_is<DType::i16> {};
template <>
struct dtype_of_t<std::uint16_t> : dtype_is<DType::u16> {};
template <>
struct dtype_of_t<std::uint8_t> : dtype_is<DType::u8> {};
template <>
struct dtype_of_t<std::byte> : dtype_is<DType::u8> {};

template <class T>
inline constexpr DType dtype_of = dtype_of_t<std::remove_cv_t<T>>::value;

constexpr std::size_t size_of(DType type) {
  switch (type) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
    case DType::u16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType type) {
  switch (type) {
    case DType::f64: return "float64";
    case DType::f32: return "float32";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::i64: return "int64";
    case DType::i32: return "int32";
    case DType::i16: return "int16";
    case DType::u16: return "uint16";
    case DType::u8: return "uint8";
  }
  return "?";
}

/// bf16 or f16.
template <class T>
inline constexpr bool is_half = std::is_same_v<std::remove_cv_t<T>, bf16> || std::is_same_v<std::remove_cv_t<T>, f16>;

/// The type in which a kernel computes on elements of type T: float for bf16 and f16, otherwise T.
template <class T>
using compute_t = std::conditional_t<is_half<T>, float, std::remove_cv_t<T>>;

}  // namespace zeropp
