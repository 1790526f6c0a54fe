// SPDX-License-Identifier: Apache-2.0
// Functions that compilers can vectorise: straight-line code without calls or branches. In double they are the
// library's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace zeropp::kernels {

/// e^x within 2 ulp for float; 0 below -87.3, finite (e^88.3) above 88.3.
inline float exp(float x) {
  x = x > 88.3f ? 88.3f : x;
  const float clamped = x < -87.3f ? -87.3f : x;
  // x = n·ln 2 + r; adding 1.5 · 2²³ rounds n to an integer that sits in the low bits
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const auto power = (std::bit_cast<std::uint32_t>(shifted) + 127u) << 23;
  const float y = p * std::bit_cast<float>(power);
  return x < -87.3f ? 0.0f : y;
}
inline double exp(double x) { return std::exp(x); }

inline float tanh(float x) { return 1.0f - 2.0f / (1.0f + kernels::exp(2.0f * x)); }
inline double tanh(double x) { return std::tanh(x); }

template <class T>
T sigmoid(T x) {
  return 1 / (1 + kernels::exp(-x));
}

}  // namespace zeropp::kernels
