// SPDX-License-Identifier: Apache-2.0
// Reductions to one number, in an order that depends on the size alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// Σ x² in double: blocks of 4096 elements, each in 8 interleaved partial sums, the blocks added in order. 0 on the dry
/// device. NaN and infinity come through.
template <Device D, class T>
double sum_of_squares(D& device, std::span<T> x) {
  constexpr std::int64_t block = 4096;
  constexpr int lanes = 8;
  const auto n = static_cast<std::int64_t>(x.size());
  double sum = 0;
  device.run(
      {.name = "sum of squares", .flops = 2.0 * static_cast<double>(n), .bytes = static_cast<double>(x.size_bytes())},
      [&](auto& workers) {
        std::vector<double> blocks(static_cast<std::size_t>(ceil_div(n, block)));
        workers.for_each(n, block, [&](std::int64_t begin, std::int64_t end) {
          double partial[lanes] = {};
          auto i = begin;
          for (; i + lanes <= end; i += lanes)
            for (int l = 0; l < lanes; ++l) {
              const double v = static_cast<compute_t<T>>(x[static_cast<std::size_t>(i + l)]);
              partial[l] += v * v;
            }
          for (int l = 0; i < end; ++i, ++l) {
            const double v = static_cast<compute_t<T>>(x[static_cast<std::size_t>(i)]);
            partial[l] += v * v;
          }
          double total = 0;
          for (double p : partial) total += p;
          blocks[static_cast<std::size_t>(begin / block)] = total;
        });
        for (double b : blocks) sum += b;
      });
  return sum;
}

/// sums[places[i]] = Σ x² of parts[i]; the other sums stay as they are. They lie in the device's memory.
template <Device D, class T>
void sums_of_squares(D& device, std::span<const std::span<T>> parts, std::span<const int> places,
                     std::span<double> sums) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const double sum = sum_of_squares(device, parts[i]);
    if constexpr (!D::dry) sums[static_cast<std::size_t>(places[i])] = sum;
  }
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/reduce.hpp>
#endif
