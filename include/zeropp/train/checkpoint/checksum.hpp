// SPDX-License-Identifier: Apache-2.0
// XXH3 (64 bits) of bytes that come in pieces.
#pragma once

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#if defined(__AVX512F__) && !defined(XXH_VECTOR)
#define XXH_VECTOR 2  // AVX2: the AVX-512 intrinsics of g++ 12 warn of uninitialised values
#endif
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace zeropp {

class Checksum {
 public:
  Checksum() { XXH3_64bits_reset(&state_); }
  void add(std::span<const std::byte> data) { XXH3_64bits_update(&state_, data.data(), data.size()); }
  std::uint64_t value() const { return XXH3_64bits_digest(&state_); }

  static std::uint64_t of(std::string_view data) { return XXH3_64bits(data.data(), data.size()); }

 private:
  XXH3_state_t state_;
};

/// 16 lower-case hexadecimal digits: JSON numbers lose integers beyond 2^53 in many readers.
inline std::string checksum_text(std::uint64_t value) {
  std::string out(16, '0');
  for (std::size_t i = 16; i-- > 0; value >>= 4) out[i] = "0123456789abcdef"[value & 15];
  return out;
}

}  // namespace zeropp
