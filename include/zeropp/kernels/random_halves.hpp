// SPDX-License-Identifier: Apache-2.0
// Random::half for many elements in a row: blocks of Philox side by side, one in each 64-bit lane of a vector.
#pragma once

#include <cstdint>

#include <zeropp/base/random.hpp>
#include <zeropp/kernels/vector.hpp>

namespace zeropp::kernels {

namespace detail {

/// The product of the lower half of each lane; what stands in the upper halves does not matter. By instruction:
/// compilers make three products of whole lanes of it.
template <class V>
inline V multiply_lower(const V& x, std::uint64_t factor) {
#if defined(__AVX2__)
  if constexpr (sizeof(V) == register_bytes) {
    const V factors = V{} + factor;
    V product;
    asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(x), "v"(factors));
    return product;
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(V) == 16) {
    const V factors = V{} + factor;
    V product = x;
    asm("pmuludq %1, %0" : "+x"(product) : "x"(factors));
    return product;
  }
#endif
  return (x & 0xffffffffu) * factor;
}

}  // namespace detail

/// out[i] = random.half(8 · first + i) for i < 8 · Blocks; Blocks is a multiple of 8.
template <int Blocks>
inline void random_halves(const Random& random, std::uint64_t first, std::uint16_t* out) {
  constexpr int n = lanes<std::uint64_t>;
  static_assert(Blocks % n == 0);
  using V = Vector<std::uint64_t, n>;
  constexpr std::uint64_t lower = 0xffffffffu;
  for (int block = 0; block < Blocks; block += n) {
    V a, b, c = V{} + random.step()[0], d = V{} + random.step()[1];
    for (int i = 0; i < n; ++i) a[i] = first + static_cast<std::uint64_t>(block + i);
    b = a >> 32;
    auto key = random.key();
    for (int round = 0; round < zeropp::detail::philox_rounds; ++round) {
      const V x = detail::multiply_lower(a, zeropp::detail::philox_a),
              y = detail::multiply_lower(c, zeropp::detail::philox_b);
      a = (y >> 32) ^ b ^ key[0];
      b = y;
      c = (x >> 32) ^ d ^ key[1];
      d = x;
      key = zeropp::detail::philox_next(key);
    }
    const V front = (a & lower) | b << 32, back = (c & lower) | d << 32;
    for (int i = 0; i < n; ++i) {
      const std::uint64_t words[2] = {front[i], back[i]};
      for (int k = 0; k < 8; ++k) out[8 * (block + i) + k] = static_cast<std::uint16_t>(words[k / 4] >> k % 4 * 16);
    }
  }
}

}  // namespace zeropp::kernels
