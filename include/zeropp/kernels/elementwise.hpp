// SPDX-License-Identifier: Apache-2.0
// Operations element by element: sums, conversions, Gelu, SwiGLU, dropout. Any of float, double, bf16, f16; the last
// two compute in float. Spans of one call have one size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/math.hpp>
#include <zeropp/kernels/positions.hpp>

namespace zeropp::kernels {

namespace detail {
inline constexpr std::int64_t grain = 16384;  ///< elements a thread takes at a time

/// out[i] = f(in[i]...) in the compute type.
template <Device D, class F, class Out, class... In>
void map(D& device, std::string_view name, double flops, F f, std::span<Out> out, std::span<const In>... in) {
  const auto n = static_cast<std::int64_t>(out.size());
  const Cost cost{.name = name,
                  .flops = flops * static_cast<double>(n),
                  .bytes = static_cast<double>(n) * static_cast<double>(sizeof(Out) + (sizeof(In) + ... + 0))};
  device.run(cost, [&](auto& workers) {
    workers.for_each(n, grain, [&](std::int64_t begin, std::int64_t end) {
      Out* to = out.data();
      [&](const In*... from) {
        for (std::int64_t i = begin; i < end; ++i) to[i] = static_cast<Out>(f(static_cast<compute_t<In>>(from[i])...));
      }(in.data()...);
    });
  });
}

template <class T>
using view = std::span<const std::remove_cv_t<T>>;
}  // namespace detail

/// out = a + b; out may be a or b.
template <Device D, class T>
void add(D& device, std::span<T> a, std::span<T> b, std::span<T> out) {
  detail::map(
      device, "add", 1, [](auto x, auto y) { return x + y; }, out, detail::view<T>(a), detail::view<T>(b));
}

/// x *= factor.
template <Device D, class T>
void scale(D& device, std::span<T> x, compute_t<T> factor) {
  detail::map(
      device, "scale", 1, [factor](auto v) { return v * factor; }, x, detail::view<T>(x));
}

template <Device D, class T>
void fill(D& device, std::span<T> x, T value) {
  detail::map(
      device, "fill", 0, [value] { return value; }, x);
}

template <Device D, class T>
void copy(D& device, std::span<const T> from, std::span<T> to) {
  detail::map(
      device, "copy", 0, [](auto v) { return v; }, to, from);
}

template <Device D, class A, class B>
void convert(D& device, std::span<A> in, std::span<B> out) {
  detail::map(
      device, "convert", 0, [](auto v) { return static_cast<compute_t<B>>(v); }, out, detail::view<A>(in));
}

/// The tanh form of GPT-2: y = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))). (Hendrycks and Gimpel, 2016)
template <Device D, class T>
void gelu_forward(D& device, std::span<T> x, std::span<T> y) {
  using C = compute_t<T>;
  detail::map(
      device, "gelu", 12,
      [](C v) {
        const C u = C(0.79788456080286535588) * (v + C(0.044715) * v * v * v);
        return C(0.5) * v * (1 + kernels::tanh(u));
      },
      y, detail::view<T>(x));
}

/// dx = dy · gelu'(x); dx may be dy.
template <Device D, class T>
void gelu_backward(D& device, std::span<T> x, std::span<T> dy, std::span<T> dx) {
  using C = compute_t<T>;
  detail::map(
      device, "gelu backward", 20,
      [](C v, C g) {
        const C a = C(0.79788456080286535588), b = C(0.044715);
        const C t = kernels::tanh(a * (v + b * v * v * v));
        return g * (C(0.5) * (1 + t) + C(0.5) * v * (1 - t * t) * a * (1 + 3 * b * v * v));
      },
      dx, detail::view<T>(x), detail::view<T>(dy));
}

/// y = silu(gate) · up with silu(x) = x · sigmoid(x). (Shazeer, "GLU variants improve Transformer", 2020)
template <Device D, class T>
void swiglu_forward(D& device, std::span<T> gate, std::span<T> up, std::span<T> y) {
  using C = compute_t<T>;
  detail::map(
      device, "swiglu", 6, [](C g, C u) { return g * kernels::sigmoid(g) * u; }, y, detail::view<T>(gate),
      detail::view<T>(up));
}

/// Overwrites dgate and dup.
template <Device D, class T>
void swiglu_backward(D& device, std::span<T> gate, std::span<T> up, std::span<T> dy, std::span<T> dgate,
                     std::span<T> dup) {
  using C = compute_t<T>;
  detail::map(
      device, "swiglu backward", 10,
      [](C g, C u, C d) {
        const C s = kernels::sigmoid(g);
        return d * u * s * (1 + g * (1 - s));
      },
      dgate, detail::view<T>(gate), detail::view<T>(up), detail::view<T>(dy));
  detail::map(
      device, "swiglu backward", 6, [](C g, C d) { return d * g * kernels::sigmoid(g); }, dup, detail::view<T>(gate),
      detail::view<T>(dy));
}

/// y = x / (1 - p) where the counter's uniform number is at least p, else 0. Backward is the same on dy. `numbers` says
/// which element of the whole batch each one is, so the mask does not depend on the ranks. y may be x.
template <Device D, class T>
void dropout(D& device, std::span<T> x, std::span<T> y, float p, const Random& random, const ElementNumbers& numbers) {
  const auto n = static_cast<std::int64_t>(x.size());
  const auto keep = static_cast<compute_t<T>>(1 / (1 - static_cast<double>(p)));
  const auto threshold = static_cast<std::uint32_t>(static_cast<double>(p) * 0x1p24);
  device.run({.name = "dropout", .bytes = 2.0 * static_cast<double>(x.size_bytes())}, [&](auto& workers) {
    workers.for_each(n, detail::grain, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = begin; i < end;) {
        const auto run = numbers.run(i);
        const auto until = std::min(end, i + run.count);
        for (auto at = static_cast<std::uint64_t>(run.begin); i < until;) {
          const auto block = random.block(at / 4);
          for (auto k = at % 4; k < 4 && i < until; ++k, ++i, ++at) {
            const auto e = static_cast<std::size_t>(i);
            const bool kept = block[k] >> 8 >= threshold;
            y[e] = static_cast<T>(kept ? static_cast<compute_t<T>>(x[e]) * keep : compute_t<T>{0});
          }
        }
      }
    });
  });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/elementwise.hpp>
#endif
