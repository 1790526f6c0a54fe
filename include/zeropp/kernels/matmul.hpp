// SPDX-License-Identifier: Apache-2.0
// Matrix products on the host, cut into tiles whose size depends on the shape alone: the bits do not depend on the
// number of threads, nor on where the operands lie. bf16 and f16 convert while they are packed; such a
// result is rounded once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/device.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/gemm.hpp>
#include <zeropp/kernels/into.hpp>

namespace zeropp::kernels {

namespace detail {

/// Largest tile of a result that one thread computes at a time, and depth of its packed operands: they stay in a
/// second-level cache of 1 MiB. Twice the size in any direction gains 2 % at most, half of it loses 6 % and more.
inline constexpr std::int64_t matmul_rows = 256, matmul_columns = 384, matmul_depth = 384;

/// `size` in equal parts of at most `most`, each a multiple of `unit`.
inline std::int64_t even_part(std::int64_t size, std::int64_t most, std::int64_t unit) {
  return round_up(ceil_div(std::max<std::int64_t>(size, 1), ceil_div(std::max<std::int64_t>(size, 1), most)), unit);
}

/// One thread's buffers for a tile: both operands packed, and the sums of a result that is stored in another type.
template <class C>
struct MatmulScratch {
  Scratch<C> left, right, sums;

  static MatmulScratch& of_thread() {
    static thread_local MatmulScratch scratch;
    return scratch;
  }
};

/// One panel of columns of the result, as wide as the tile of registers or narrower.
template <class C>
void multiply_panel(const C* left, const C* right, std::int64_t depth, MatrixView<C> c, bool add) {
  constexpr int width = tile_columns<C>;
  for (std::int64_t i = 0; i < c.rows; i += tile_rows, left += tile_rows * depth) {
    C* to = c.data + i * c.stride;
    if (i + tile_rows <= c.rows && c.columns == width) {
      micro<tile_rows, tile_vectors, 1, tile_rows>(left, right, width, depth, to, c.stride, add);
      continue;
    }
    C whole[std::size_t{tile_rows * width}];
    micro<tile_rows, tile_vectors, 1, tile_rows>(left, right, width, depth, whole, width, false);
    for (std::int64_t r = 0; r < std::min<std::int64_t>(tile_rows, c.rows - i); ++r)
      for (std::int64_t j = 0; j < c.columns; ++j)
        to[r * c.stride + j] = add ? to[r * c.stride + j] + whole[r * width + j] : whole[r * width + j];
  }
}

/// c = or += sums + bias, where either is there.
template <class C, class T, class Bias>
void finish(MatrixView<const C> sums, MatrixView<T> c, bool add, const Bias* bias) {
  for (std::int64_t r = 0; r < c.rows; ++r)
    for (std::int64_t j = 0; j < c.columns; ++j) {
      C value = sums.data[r * sums.stride + j];
      if (bias) value += static_cast<C>(bias[j]);
      T& to = c.data[r * c.stride + j];
      to = static_cast<T>(add ? static_cast<C>(to) + value : value);
    }
}

/// One tile, on the calling thread.
template <class C, class A, class B, class T, class Bias>
void multiply_tile(MatrixView<const A> a, MatrixView<const B> b, MatrixView<T> c, Into into, const Bias* bias) {
  constexpr bool direct = std::is_same_v<T, C>;
  constexpr int width = tile_columns<C>;
  auto& scratch = MatmulScratch<C>::of_thread();
  const auto part = even_part(a.columns, matmul_depth, 8);
  C* left = scratch.left.at_least(round_up(c.rows, tile_rows) * part);
  C* right = scratch.right.at_least(round_up(c.columns, width) * part);
  MatrixView<C> sums;
  if constexpr (direct)
    sums = c;
  else
    sums = row_major(scratch.sums.at_least(c.rows * c.columns), c.rows, c.columns);
  std::int64_t begin = 0;
  do {  // once even for a depth of 0
    const auto depth = std::min(part, a.columns - begin);
    const bool add = begin > 0 || (direct && into == Into::add), last = begin + depth == a.columns;
    pack<tile_rows>(a.block(0, begin, a.rows, depth), left);
    pack<width>(b.block(begin, 0, depth, b.columns).t(), right);
    for (std::int64_t j = 0; j < c.columns; j += width) {
      const auto columns = std::min<std::int64_t>(width, c.columns - j);
      const auto panel = sums.block(0, j, c.rows, columns);
      multiply_panel<C>(left, right + j * depth, depth, panel, add);
      if (last && (bias || !direct))
        finish<C>(MatrixView<const C>{panel.data, panel.rows, panel.columns, panel.stride},
                  c.block(0, j, c.rows, columns), !direct && into == Into::add, bias ? bias + j : nullptr);
    }
    begin += depth;
  } while (begin < a.columns);
}

/// c = a·b or c += a·b of one element type, on the calling thread.
template <class C>
void product(MatrixView<const C> a, MatrixView<const C> b, MatrixView<C> c, Into into) {
  multiply_tile<C>(a, b, c, into, static_cast<const C*>(nullptr));
}

template <class T>
MatrixView<const T> constant(MatrixView<T> m) {
  return {m.data, m.rows, m.columns, m.stride, m.transposed};
}

}  // namespace detail

/// c = a·b, or c += a·b; with `bias` [columns of c] added to every row. c is not transposed and overlaps neither
/// operand. Element types may differ; the product is computed in float, or in
/// double where one of them is double. Throws ConfigError for shapes that do not fit.
template <Device D, class A, class B, class T, class Bias = compute_t<T>>
void matmul(D& device, MatrixView<A> a, MatrixView<B> b, MatrixView<T> c, Into into = Into::overwrite,
            const Bias* bias = nullptr) {
  if (a.columns != b.rows || c.rows != a.rows || c.columns != b.columns || c.transposed)
    throw ConfigError(text("a matrix product of ", a.rows, "x", a.columns, " by ", b.rows, "x", b.columns, " into ",
                           c.rows, "x", c.columns, c.transposed ? " (transposed)" : "", " does not fit"));
  const double m = static_cast<double>(c.rows), n = static_cast<double>(c.columns), k = static_cast<double>(a.columns);
  const Cost cost{.name = "matmul",
                  .kind = CostKind::product,
                  .flops = 2 * m * n * k,
                  .bytes = m * k * sizeof(A) + k * n * sizeof(B) + m * n * sizeof(T)};
  using C = std::common_type_t<compute_t<A>, compute_t<B>, compute_t<T>>;
  device.run(cost, [&](auto& workers) {
    const auto rows = detail::even_part(c.rows, detail::matmul_rows, detail::tile_rows);
    const auto columns = detail::even_part(c.columns, detail::matmul_columns, detail::tile_columns<C>);
    const auto across = ceil_div(c.columns, columns);
    workers.for_each(ceil_div(c.rows, rows) * across, 1, [&](std::int64_t first, std::int64_t last) {
      for (auto tile = first; tile < last; ++tile) {
        const auto row = tile / across * rows, column = tile % across * columns;
        const auto height = std::min(rows, c.rows - row), width = std::min(columns, c.columns - column);
        detail::multiply_tile<C>(detail::constant(a.block(row, 0, height, a.columns)),
                                 detail::constant(b.block(0, column, b.rows, width)),
                                 c.block(row, column, height, width), into, bias ? bias + column : nullptr);
      }
    });
  });
}

/// sum [width] = or += the rows of x [n, width], in order.
template <Device D, class X, class G>
void column_sum(D& device, const X* x, G* sum, std::int64_t n, std::int64_t width, Into into = Into::add) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "column sum", .flops = count, .bytes = count * sizeof(X)}, [&](auto& workers) {
    constexpr std::int64_t strip = 128;
    workers.for_each(width, strip, [&](std::int64_t begin, std::int64_t end) {
      C total[strip] = {};
      for (std::int64_t row = 0; row < n; ++row)
        for (auto i = begin; i < end; ++i) total[i - begin] += static_cast<C>(x[row * width + i]);
      if (into == Into::overwrite) std::fill(sum + begin, sum + end, G{});
      for (auto i = begin; i < end; ++i) sum[i] += static_cast<compute_t<G>>(total[i - begin]);
    });
  });
}

/// y [n, out] = x [n, in] · wᵀ + bias, with w [out, in]; bias [out] may be null. Where `onto` [n, out] is not null it
/// is added: the sum of a residual. y overlaps neither x nor onto.
template <Device D, class X, class W, class Y>
void linear_forward(D& device, const X* x, const W* w, const W* bias, Y* y, std::int64_t n, std::int64_t in,
                    std::int64_t out, const Y* onto = nullptr) {
  matmul(device, row_major(x, n, in), row_major(w, out, in).t(), row_major(y, n, out), Into::overwrite, bias);
  const auto size = static_cast<std::size_t>(n * out);
  if (onto) add(device, std::span<Y>{y, size}, std::span<Y>{const_cast<Y*>(onto), size}, std::span<Y>{y, size});
}

/// pre [n, out] = x · wᵀ + bias, y = gelu(pre).
template <Device D, class X, class W, class Y>
void linear_gelu_forward(D& device, const X* x, const W* w, const W* bias, Y* pre, Y* y, std::int64_t n,
                         std::int64_t in, std::int64_t out) {
  linear_forward(device, x, w, bias, pre, n, in, out);
  const auto size = static_cast<std::size_t>(n * out);
  gelu_forward(device, std::span<Y>{pre, size}, std::span<Y>{y, size});
}

/// dx [n, in] = dy [n, out] · w [out, in].
template <Device D, class Dy, class W, class Dx>
void linear_backward_input(D& device, const Dy* dy, const W* w, Dx* dx, std::int64_t n, std::int64_t in,
                           std::int64_t out, Into into = Into::overwrite) {
  matmul(device, row_major(dy, n, out), row_major(w, out, in), row_major(dx, n, in), into);
}

/// dx [n, in] = gelu'(pre) ∘ (dy · w): through a linear layer and the gelu before it.
template <Device D, class Dy, class W, class Dx>
void linear_gelu_backward_input(D& device, const Dy* dy, const W* w, const Dx* pre, Dx* dx, std::int64_t n,
                                std::int64_t in, std::int64_t out) {
  linear_backward_input(device, dy, w, dx, n, in, out);
  const auto size = static_cast<std::size_t>(n * in);
  gelu_backward(device, std::span<Dx>{const_cast<Dx*>(pre), size}, std::span<Dx>{dx, size}, std::span<Dx>{dx, size});
}

/// dw [out, in] = or += dyᵀ · x; dbias [out], where it is not null, = or += the rows of dy.
template <Device D, class Dy, class X, class G>
void linear_backward_weight(D& device, const Dy* dy, const X* x, G* dw, G* dbias, std::int64_t n, std::int64_t in,
                            std::int64_t out, Into into = Into::add) {
  matmul(device, row_major(dy, n, out).t(), row_major(x, n, in), row_major(dw, out, in), into);
  if (dbias) column_sum(device, dy, dbias, n, out, into);
}

}  // namespace zeropp::kernels

#ifdef ZEROPP_CUDA
#include <zeropp/kernels/cuda/column_sum.hpp>
#include <zeropp/kernels/cuda/matmul.hpp>
#endif
