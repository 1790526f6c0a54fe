// SPDX-License-Identifier: Apache-2.0
// LayerNorm (Ba, Kiros and Hinton, 2016) and RMSNorm (Zhang and Sennrich, 2019) over the rows of x [n, C]. Sums of
// parameter gradients go over blocks of rows of a fixed size, in order: the number of threads does not change them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/into.hpp>

namespace zeropp::kernels {

namespace detail {
inline constexpr std::int64_t norm_rows = 64;  ///< rows of one block

/// Sum of f(0) … f(n-1) in 16 interleaved partial sums, combined in order: the shape of a vector loop, spelled out
/// so that every compiler adds in this order.
template <class C, class F>
C lane_sum(std::int64_t n, F f) {
  constexpr int lanes = 16;  // a whole vector register of float
  C partial[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int l = 0; l < lanes; ++l) partial[l] += f(i + l);
  for (int l = 0; i < n; ++i, ++l) partial[l] += f(i);
  C sum = 0;
  for (C p : partial) sum += p;
  return sum;
}
}  // namespace detail

/// y = (x - mean) · rstd · gamma + beta. mean and rstd are [n].
template <Device D, class X, class W>
void layer_norm_forward(D& device, const X* x, const W* gamma, const W* beta, compute_t<X> epsilon, X* y,
                        compute_t<X>* mean, compute_t<X>* rstd, std::int64_t n, std::int64_t width) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "layer norm", .flops = 8 * count, .bytes = 2 * count * sizeof(X)}, [&](auto& workers) {
    workers.for_each(n, detail::norm_rows, [&](std::int64_t begin, std::int64_t end) {
      for (auto row = begin; row < end; ++row) {
        const X* from = x + row * width;
        X* to = y + row * width;
        const C m = detail::lane_sum<C>(width, [&](auto i) { return C(from[i]); }) / C(width);
        const C variance =
            detail::lane_sum<C>(width, [&](auto i) { return (C(from[i]) - m) * (C(from[i]) - m); }) / C(width);
        const C r = 1 / std::sqrt(variance + epsilon);
        for (std::int64_t i = 0; i < width; ++i)
          to[i] = static_cast<X>((C(from[i]) - m) * r * C(gamma[i]) + C(beta[i]));
        mean[row] = m;
        rstd[row] = r;
      }
    });
  });
}

/// Overwrites dx, with `onto` [n, C] added where it is not null; adds to dgamma and dbeta, or overwrites them. dx may
/// be dy or onto. A null dx is left out (then gamma is not read), and so are null dgamma and dbeta.
template <Device D, class X, class W, class G>
void layer_norm_backward(D& device, const X* dy, const X* x, const W* gamma, const compute_t<X>* mean,
                         const compute_t<X>* rstd, X* dx, G* dgamma, G* dbeta, std::int64_t n, std::int64_t width,
                         const X* onto = nullptr, Into into = Into::add) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "layer norm backward", .flops = 14 * count, .bytes = 3 * count * sizeof(X)}, [&](auto& workers) {
    const auto blocks = ceil_div(n, detail::norm_rows);
    std::vector<C> sums(dgamma ? static_cast<std::size_t>(blocks * 2 * width) : 0);
    workers.for_each(n, detail::norm_rows, [&](std::int64_t begin, std::int64_t end) {
      C* sum_gamma = dgamma ? sums.data() + begin / detail::norm_rows * 2 * width : nullptr;
      C* sum_beta = dgamma ? sum_gamma + width : nullptr;
      for (auto row = begin; row < end; ++row) {
        const X *d = dy + row * width, *from = x + row * width;
        X* to = dx ? dx + row * width : nullptr;
        const C m = mean[row], r = rstd[row];
        for (std::int64_t i = 0; sum_gamma && i < width; ++i) {
          sum_gamma[i] += C(d[i]) * ((C(from[i]) - m) * r);
          sum_beta[i] += C(d[i]);
        }
        if (!dx) continue;
        const C a = detail::lane_sum<C>(width, [&](auto i) { return C(d[i]) * C(gamma[i]); }) / C(width);
        const C b = detail::lane_sum<C>(width, [&](auto i) { return C(d[i]) * C(gamma[i]) * ((C(from[i]) - m) * r); }) /
                    C(width);
        for (std::int64_t i = 0; i < width; ++i) {
          const C h = (C(from[i]) - m) * r, g = C(d[i]);
          const auto value = static_cast<X>(r * (g * C(gamma[i]) - a - h * b));
          to[i] = onto ? static_cast<X>(C(value) + C(onto[row * width + i])) : value;
        }
      }
    });
    if (dgamma && into == Into::overwrite) {
      std::fill_n(dgamma, width, G{});
      std::fill_n(dbeta, width, G{});
    }
    for (std::int64_t block = 0; dgamma && block < blocks; ++block)
      for (std::int64_t i = 0; i < width; ++i) {
        dgamma[i] += static_cast<C>(sums[static_cast<std::size_t>(block * 2 * width + i)]);
        dbeta[i] += static_cast<C>(sums[static_cast<std::size_t>((block * 2 + 1) * width + i)]);
      }
  });
}

/// y = x · rstd · gamma with rstd = 1 / √(mean(x²) + epsilon).
template <Device D, class X, class W>
void rms_norm_forward(D& device, const X* x, const W* gamma, compute_t<X> epsilon, X* y, compute_t<X>* rstd,
                      std::int64_t n, std::int64_t width) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "rms norm", .flops = 4 * count, .bytes = 2 * count * sizeof(X)}, [&](auto& workers) {
    workers.for_each(n, detail::norm_rows, [&](std::int64_t begin, std::int64_t end) {
      for (auto row = begin; row < end; ++row) {
        const X* from = x + row * width;
        X* to = y + row * width;
        const C r =
            1 /
            std::sqrt(detail::lane_sum<C>(width, [&](auto i) { return C(from[i]) * C(from[i]); }) / C(width) + epsilon);
        for (std::int64_t i = 0; i < width; ++i) to[i] = static_cast<X>(C(from[i]) * r * C(gamma[i]));
        rstd[row] = r;
      }
    });
  });
}

/// Overwrites dx, with `onto` added; adds to dgamma, or overwrites it. The rules for null and equal pointers are those
/// above.
template <Device D, class X, class W, class G>
void rms_norm_backward(D& device, const X* dy, const X* x, const W* gamma, const compute_t<X>* rstd, X* dx, G* dgamma,
                       std::int64_t n, std::int64_t width, const X* onto = nullptr, Into into = Into::add) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "rms norm backward", .flops = 9 * count, .bytes = 3 * count * sizeof(X)}, [&](auto& workers) {
    const auto blocks = ceil_div(n, detail::norm_rows);
    std::vector<C> sums(dgamma ? static_cast<std::size_t>(blocks * width) : 0);
    workers.for_each(n, detail::norm_rows, [&](std::int64_t begin, std::int64_t end) {
      C* sum = dgamma ? sums.data() + begin / detail::norm_rows * width : nullptr;
      for (auto row = begin; row < end; ++row) {
        const X *d = dy + row * width, *from = x + row * width;
        X* to = dx ? dx + row * width : nullptr;
        const C r = rstd[row];
        for (std::int64_t i = 0; sum && i < width; ++i) sum[i] += C(d[i]) * C(from[i]) * r;
        if (!dx) continue;
        const C b =
            detail::lane_sum<C>(width, [&](auto i) { return C(d[i]) * C(gamma[i]) * C(from[i]); }) * r * r / C(width);
        for (std::int64_t i = 0; i < width; ++i) {
          const auto value = static_cast<X>(r * (C(d[i]) * C(gamma[i]) - C(from[i]) * b));
          to[i] = onto ? static_cast<X>(C(value) + C(onto[row * width + i])) : value;
        }
      }
    });
    if (dgamma && into == Into::overwrite) std::fill_n(dgamma, width, G{});
    for (std::int64_t block = 0; dgamma && block < blocks; ++block)
      for (std::int64_t i = 0; i < width; ++i)
        dgamma[i] += static_cast<C>(sums[static_cast<std::size_t>(block * width + i)]);
  });
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/norm.hpp>
#endif
