// SPDX-License-Identifier: Apache-2.0
// Draws the first weights, and what is kept of their fp32 masters beside those of 16 bits.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/init.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// weights[i] = init(random, first + i). `masters` is what is kept beside weights with masters (master_of_t), as many;
/// where it is empty weights are rounded to nearest.
template <Device D, class W>
void initialise(D& device, const Init& init, const Random& random, std::int64_t first, std::span<W> weights,
                std::span<kept_t<W>> masters) {
  device.run({.name = "initialise", .bytes = static_cast<double>(weights.size_bytes())}, [&](auto& workers) {
    workers.for_each(static_cast<std::int64_t>(weights.size()), 4096, [&](std::int64_t begin, std::int64_t end) {
      for (auto at = begin; at < end; ++at) {
        const auto i = static_cast<std::size_t>(at);
        const float value = init(random, first + at);
        if constexpr (has_master<W>) {
          if (!masters.empty()) {
            const auto [weight, kept] = master_of_t<W>::from(value);
            weights[i] = weight, masters[i] = kept;
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
