// SPDX-License-Identifier: Apache-2.0
// The fp32 masters of a block of weights, put together from the weights and what is kept beside them, and taken apart
// again. On plain integers: loops over the struct SplitMaster do not vectorise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <zeropp/base/dtype.hpp>
#include <zeropp/kernels/vector.hpp>

namespace zeropp::kernels::detail {

inline constexpr std::int64_t update_block = 64;  ///< elements

inline void join_masters(const bf16* w, const std::int16_t* low, float* master) {
  std::uint16_t high[update_block];
  std::uint32_t bits[update_block];
  std::memcpy(high, w, sizeof high);
  for (int i = 0; i < update_block; ++i)
    bits[i] =
        (static_cast<std::uint32_t>(high[i]) << 16) + static_cast<std::uint32_t>(static_cast<std::int32_t>(low[i]));
  std::memcpy(master, bits, sizeof bits);
}
inline void split_masters(const float* master, bf16* w, std::int16_t* low) {
  std::uint16_t high[update_block];
  std::uint32_t bits[update_block];
  std::memcpy(bits, master, sizeof bits);
  for (int i = 0; i < update_block; ++i) high[i] = static_cast<std::uint16_t>((bits[i] + 0x8000u) >> 16);
  for (int i = 0; i < update_block; ++i) low[i] = static_cast<std::int16_t>(static_cast<std::uint16_t>(bits[i]));
  std::memcpy(static_cast<void*>(w), high, sizeof high);
}

inline void join_masters(const f16*, const float* whole, float* master) { std::copy_n(whole, update_block, master); }
inline void split_masters(const float* master, f16* w, float* whole) {
  std::copy_n(master, update_block, whole);
  for (int i = 0; i < update_block; i += lanes<float>)
    store<lanes<float>, float>(w + i, load<lanes<float>>(master + i));
}
template <class T>
void join_masters(const T* w, const NoMaster::Kept*, T* master) {
  std::copy_n(w, update_block, master);
}
template <class T>
void split_masters(const T* master, T* w, NoMaster::Kept*) {
  std::copy_n(master, update_block, w);
}

}  // namespace zeropp::kernels::detail
