// SPDX-License-Identifier: Apache-2.0
// Sums over ranks, always in rank order: threads and MPI both come here, so their bits are equal. Blocked, so that the
// running sum stays in the first cache level whatever the number of ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>

namespace zeropp::detail {

/// What the elements of a sum are added in: float for bf16; unsigned for integers, whose overflow wraps.
template <class T>
struct sum_type {
  using type = T;
};
template <>
struct sum_type<bf16> {
  using type = float;
};
template <std::integral T>
struct sum_type<T> {
  using type = std::make_unsigned_t<T>;
};

/// A constant number of elements lets compilers vectorise the loops at -O2; the remainder goes element by element.
inline constexpr std::int64_t sum_block = 1024;

template <class T>
void sum_ranks(std::span<const void* const> in, T* out, std::int64_t count) {
  using Sum = typename sum_type<T>::type;
  alignas(64) Sum sum[sum_block];
  const auto source = [&](std::size_t rank, std::int64_t at) { return static_cast<const T*>(in[rank]) + at; };
  std::int64_t at = 0;
  for (; at + sum_block <= count; at += sum_block) {
    const T* first = source(0, at);
    for (std::int64_t i = 0; i < sum_block; ++i) sum[i] = static_cast<Sum>(first[i]);
    for (std::size_t rank = 1; rank < in.size(); ++rank) {
      const T* next = source(rank, at);
      for (std::int64_t i = 0; i < sum_block; ++i) sum[i] = static_cast<Sum>(sum[i] + static_cast<Sum>(next[i]));
    }
    for (std::int64_t i = 0; i < sum_block; ++i) out[at + i] = static_cast<T>(sum[i]);
  }
  for (; at < count; ++at) {
    auto one = static_cast<Sum>(*source(0, at));
    for (std::size_t rank = 1; rank < in.size(); ++rank)
      one = static_cast<Sum>(one + static_cast<Sum>(*source(rank, at)));
    out[at] = static_cast<T>(one);
  }
}

/// out[i] = in[0][i] + in[1][i] + … in this order; bf16 is added in float and rounded once. `out` may be one of `in`.
inline void sum_in_rank_order(DType dtype, std::span<const void* const> in, void* out, std::int64_t count) {
  switch (dtype) {
    case DType::f64: return sum_ranks(in, static_cast<double*>(out), count);
    case DType::f32: return sum_ranks(in, static_cast<float*>(out), count);
    case DType::bf16: return sum_ranks(in, static_cast<bf16*>(out), count);
    case DType::i64: return sum_ranks(in, static_cast<std::int64_t*>(out), count);
    case DType::i32: return sum_ranks(in, static_cast<std::int32_t*>(out), count);
    case DType::i16: return sum_ranks(in, static_cast<std::int16_t*>(out), count);
    case DType::u16: return sum_ranks(in, static_cast<std::uint16_t*>(out), count);
    case DType::u8: return sum_ranks(in, static_cast<std::uint8_t*>(out), count);
  }
}

}  // namespace zeropp::detail
