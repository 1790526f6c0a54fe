// SPDX-License-Identifier: Apache-2.0
// Copies and sums of rectangles between buffers: columns of some heads, rows of some positions, on their way to another
// rank and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include <zeropp/base/dtype.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// `rows` rows of `width` elements: row r begins at element from + r · from_stride of one buffer, and at
/// to + r · to_stride of the other.
struct Rectangle {
  std::int64_t from, from_stride, to, to_stride, rows, width;
};

namespace detail {
template <Device D, class A, class B, class F>
void over_rectangles(D& device, std::string_view name, double flops, std::size_t bytes,
                     std::span<const Rectangle> rectangles, const A* from, B* to, F f) {
  double count = 0;
  for (const auto& r : rectangles) count += static_cast<double>(r.rows) * static_cast<double>(r.width);
  device.run({.name = name, .flops = flops * count, .bytes = count * static_cast<double>(bytes)}, [&](auto& workers) {
    for (const auto& r : rectangles) {
      const auto rows = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, r.width));
      workers.for_each(r.rows, rows, [&](std::int64_t begin, std::int64_t end) {
        for (auto row = begin; row < end; ++row) {
          const A* in = from + r.from + row * r.from_stride;
          B* out = to + r.to + row * r.to_stride;
          for (std::int64_t i = 0; i < r.width; ++i) f(static_cast<compute_t<A>>(in[i]), out[i]);
        }
      });
    }
  });
}
}  // namespace detail

/// Copies, and converts where the types differ. Rectangles do not overlap in `to`.
template <Device D, class A, class B>
void copy_rectangles(D& device, std::span<const Rectangle> rectangles, const A* from, B* to) {
  detail::over_rectangles(device, "copy rectangles", 0, sizeof(A) + sizeof(B), rectangles, from, to,
                          [](auto value, B& out) { out = static_cast<B>(static_cast<compute_t<B>>(value)); });
}

/// to += from, one rectangle after the other: they may overlap in `to`.
template <Device D, class A, class B>
void add_rectangles(D& device, std::span<const Rectangle> rectangles, const A* from, B* to) {
  detail::over_rectangles(device, "add rectangles", 1, sizeof(A) + 2 * sizeof(B), rectangles, from, to,
                          [](auto value, B& out) {
                            out = static_cast<B>(static_cast<compute_t<B>>(out) + static_cast<compute_t<B>>(value));
                          });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/rectangles.hpp>
#endif
