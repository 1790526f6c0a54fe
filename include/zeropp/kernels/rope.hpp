// SPDX-License-Identifier: Apache-2.0
// Rotary positions (Su et al., "RoFormer", 2021): pairs (i, i + size/2) of a head are turned by t · base^(-2i/size),
// t being the position in the whole sequence.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/positions.hpp>

namespace zeropp::kernels {

enum class Turn { forward = 1, backward = -1 };  ///< backward is the transpose: the turn the other way

/// In place on x: rows of `stride` elements, row b·sequence + t holds `heads` heads of `head_size` (even) elements.
template <Device D, class T>
void rope(D& device, T* x, std::int64_t stride, std::int64_t batch, std::int64_t sequence, std::int64_t heads,
          std::int64_t head_size, double base, Turn turn, Positions positions = {}) {
  using C = compute_t<T>;
  const auto half = head_size / 2;
  const auto count = static_cast<double>(batch * sequence * heads * head_size);
  device.run({.name = "rope", .flops = 3 * count, .bytes = 2 * count * sizeof(T)}, [&](auto& workers) {
    workers.for_each(sequence, 16, [&](std::int64_t begin, std::int64_t end) {
      std::vector<C> cosine(static_cast<std::size_t>(half)), sine(static_cast<std::size_t>(half));
      for (auto t = begin; t < end; ++t) {
        for (std::int64_t i = 0; i < half; ++i) {
          const double angle = static_cast<double>(positions[t]) *
                               std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
          cosine[static_cast<std::size_t>(i)] = static_cast<C>(std::cos(angle));
          sine[static_cast<std::size_t>(i)] = static_cast<C>(static_cast<int>(turn) * std::sin(angle));
        }
        for (std::int64_t b = 0; b < batch; ++b)
          for (std::int64_t h = 0; h < heads; ++h) {
            T* at = x + (b * sequence + t) * stride + h * head_size;
            for (std::int64_t i = 0; i < half; ++i) {
              const auto k = static_cast<std::size_t>(i);
              const C u = static_cast<C>(at[i]), v = static_cast<C>(at[half + i]);
              at[i] = static_cast<T>(u * cosine[k] - v * sine[k]);
              at[half + i] = static_cast<T>(v * cosine[k] + u * sine[k]);
            }
          }
      }
    });
  });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/rope.hpp>
#endif
