// SPDX-License-Identifier: Apache-2.0
// f16: IEEE 754 binary16 as storage. 10 bits of fraction, normal numbers from 2^-14 to 65504, subnormal ones down to
// 2^-24. Not a macro of headers of CUDA: programs with and without it agree on the type.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace zeropp {

/// Storage only: it converts to float to compute, and from float rounding to nearest even, beyond 65504 to infinity.
/// NaN stays a NaN. Without branches, so that loops over it vectorise; by instruction on a GPU, whose NaNs are all
/// alike.
struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  constexpr explicit f16(float value) {
#ifdef __CUDA_ARCH__
    if (!std::is_constant_evaluated()) {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
      return;
    }
#endif
    const auto b = std::bit_cast<std::uint32_t>(value), u = b & 0x7fffffffu;
    // Below 2^-14 the sum with 1/2 has the step of subnormal numbers, 2^-24, as its last bit; above, the exponent
    // changes its bias, and a carry of the rounded fraction goes into it, up to infinity.
    const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(u < 0x38800000u ? u : 0u) + 0.5f) & 0x7fffu;
    const auto normal = (u + 0xc8000fffu + (u >> 13 & 1u)) >> 13;
    const auto huge = u > 0x7f800000u ? 0x7e00u | (u >> 13 & 0x3ffu) : 0x7c00u;
    const auto magnitude = u < 0x38800000u ? small : u < 0x47800000u ? normal : huge;
    bits = static_cast<std::uint16_t>((b >> 16 & 0x8000u) | magnitude);
  }
  constexpr operator float() const {
#ifdef __CUDA_ARCH__
    if (!std::is_constant_evaluated()) {
      float value;
      asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
      return value;
    }
#endif
    const auto u = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    const auto small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(u + 0x38800000u) - 0x1p-14f);
    const auto huge = u | 0x7f800000u | (u > 0x0f800000u ? 0x400000u : 0u);
    const auto magnitude = u < 0x00800000u ? small : u < 0x0f800000u ? u + 0x38000000u : huge;
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits & 0x8000u) << 16 | magnitude);
  }
  constexpr f16& operator+=(float value) { return *this = f16(*this + value); }
};

}  // namespace zeropp
