// SPDX-License-Identifier: Apache-2.0
// First values of parameters, drawn on the GPU: an element is a function of the seed, the parameter and its number in
// the whole tensor, as on the CPU. Uniform and constant ones have the CPU's bits; normal ones come from this GPU's log,
// sin and cos in double, and may differ from the CPU's by one unit in the last place of a float.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/init.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

/// A thread draws the elements numbered 2 · pair and 2 · pair + 1, which share one block of the counter.
template <class W>
__global__ void __launch_bounds__(256)
    initialise_kernel(Init init, Random random, std::int64_t first, std::int64_t n, W* weights, kept_t<W>* masters) {
  const std::int64_t pair = first / 2 + blockIdx.x * std::int64_t{256} + threadIdx.x;
  const auto number = static_cast<std::uint64_t>(pair) * 2;
  float value[2] = {init.scale, init.scale};
  if (init.kind == Init::Kind::normal) {  // Random::normal
    const auto b = random.block(static_cast<std::uint64_t>(pair));
    const double u = (b[0] + 0.5) * 0x1p-32, v = (b[1] + 0.5) * 0x1p-32;
    const double radius = sqrt(-2 * log(u));
    double s, c;
    sincos(2 * 3.141592653589793238462643383279502884 * v, &s, &c);
    value[0] = init.scale * static_cast<float>(radius * c);
    value[1] = init.scale * static_cast<float>(radius * s);
  } else if (init.kind == Init::Kind::uniform) {
    const auto b = random.block(number / 4);
    const bool upper = number % 4;
    const std::uint32_t bits[2] = {upper ? b[2] : b[0], upper ? b[3] : b[1]};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float uniform = static_cast<float>(bits[k] >> 8) * 0x1p-24f;
      value[k] = init.scale * (2 * uniform - 1);  // exact within: the product alone is rounded
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::int64_t i = 2 * pair + k - first;
    if (i < 0 || i >= n) continue;
    if constexpr (has_master<W>) {
      if (masters) {
        const auto [weight, kept] = master_of_t<W>::from(value[k]);
        weights[i] = weight, masters[i] = kept;
        continue;
      }
    }
    weights[i] = rounded<W>(static_cast<compute_t<W>>(value[k]));
  }
}

}  // namespace detail

/// weights[i] is element first + i of its tensor. `masters` is what is kept beside weights with masters, and empty
/// otherwise.
template <CudaDevice D, class W>
void initialise(D& device, const Init& init, const Random& random, std::int64_t first, std::span<W> weights,
                std::span<kept_t<W>> masters) {
  const auto n = static_cast<std::int64_t>(weights.size());
  if (n == 0) return;
  device.run({.name = "initialise", .bytes = static_cast<double>(weights.size_bytes() + masters.size_bytes())},
             [&](cudaStream_t stream) {
               const auto blocks = static_cast<unsigned>(ceil_div(n + first % 2, 512));
               detail::initialise_kernel<<<blocks, 256, 0, stream>>>(init, random, first, n, weights.data(),
                                                                     masters.data());
             });
}

}  // namespace zeropp::kernels
#endif
