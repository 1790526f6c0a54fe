// SPDX-License-Identifier: Apache-2.0
// Draws the first weights, and for bf16 weights the lower halves of their fp32 masters.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/init.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// weights[i] = init(random, first + i). `remainder` is as long as bf16 weights with masters; where it is empty bf16
/// weights are rounded to nearest.
template <Device D, class W>
void initialise(D& device, const Init& init, const Random& random, std::int64_t first, std::span<W> weights,
                std::span<std::int16_t> remainder) {
  device.run({.name = "initialise", .bytes = static_cast<double>(weights.size_bytes())}, [&](auto& workers) {
    workers.for_each(static_cast<std::int64_t>(weights.size()), 4096, [&](std::int64_t begin, std::int64_t end) {
      for (auto at = begin; at < end; ++at) {
        const auto i = static_cast<std::size_t>(at);
        const float value = init(random, first + at);
        if constexpr (std::is_same_v<W, bf16>) {
          if (!remainder.empty()) {
            const auto split = SplitMaster::from(value);
            weights[i] = split.weight;
            remainder[i] = split.remainder;
            continue;
          }
        }
        weights[i] = static_cast<W>(value);
      }
    });
  });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/initialise.hpp>
#endif
