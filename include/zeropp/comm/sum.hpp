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

/// The type in which the elements of a sum are added: float for bf16 and f16; unsigned for integers, whose overflow
/// wraps.
template <class T>
struct sum_type {
  using type = T;
};
template <>
struct sum_type<bf16> {
  using type = float;
};
template <>
struct sum_type<f16> {
  using type = float;
};
template <std::integral T>
struct sum_type<T> {
  using type = std::make_unsigned_t<T>;
};

inline constexpr std::int64_t sum_block = 1024;

/// Not inlined: seen inside the loop over ranks, g++ -O3 interchanges the two loops and is three times slower.
template <class T, class Sum, class Count>
[[gnu::noinline]] void add_to_sum(Sum* __restrict sum, const T* __restrict next, Count count) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] = static_cast<Sum>(sum[i] + static_cast<Sum>(next[i]));
}

/// out[at, at + count) for at most a block. Where count is a constant of the type, compilers vectorise at -O2.
template <class T, class Count>
void sum_one_block(std::span<const void* const> in, std::int64_t at, T* out, Count count) {
  using Sum = typename sum_type<T>::type;
  alignas(64) Sum sum[sum_block];
  const T* first = static_cast<const T*>(in[0]) + at;
  for (std::int64_t i = 0; i < count; ++i) sum[i] = static_cast<Sum>(first[i]);
  for (std::size_t rank = 1; rank < in.size(); ++rank) add_to_sum(sum, static_cast<const T*>(in[rank]) + at, count);
  for (std::int64_t i = 0; i < count; ++i) out[at + i] = static_cast<T>(sum[i]);
}

template <class T>
void sum_ranks(std::span<const void* const> in, T* out, std::int64_t count) {
  std::int64_t at = 0;
  for (; count - at >= sum_block; at += sum_block)
    sum_one_block(in, at, out, std::integral_constant<std::int64_t, sum_block>{});
  if (at < count) sum_one_block(in, at, out, count - at);
}

/// out[i] = in[0][i] + in[1][i] + … in this order; bf16 and f16 are added in float and rounded once. `out` may be one
/// of `in`.
inline void sum_in_rank_order(DType dtype, std::span<const void* const> in, void* out, std::int64_t count) {
  switch (dtype) {
    case DType::f64: return sum_ranks(in, static_cast<double*>(out), count);
    case DType::f32: return sum_ranks(in, static_cast<float*>(out), count);
    case DType::bf16: return sum_ranks(in, static_cast<bf16*>(out), count);
    case DType::f16: return sum_ranks(in, static_cast<f16*>(out), count);
    case DType::i64: return sum_ranks(in, static_cast<std::int64_t*>(out), count);
    case DType::i32: return sum_ranks(in, static_cast<std::int32_t*>(out), count);
    case DType::i16: return sum_ranks(in, static_cast<std::int16_t*>(out), count);
    case DType::u16: return sum_ranks(in, static_cast<std::uint16_t*>(out), count);
    case DType::u8: return sum_ranks(in, static_cast<std::uint8_t*>(out), count);
  }
}

}  // namespace zeropp::detail
