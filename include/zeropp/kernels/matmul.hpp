// SPDX-License-Identifier: Apache-2.0
// Matrix products on the host: the one place that knows the GEMM library (Eigen). Products are cut along the larger
// side of the result into tiles whose size depends on the shape alone, so any number of threads gives the same bits.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns about its own AVX-512 intrinsics (its bug 105593)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/device/device.hpp>

namespace zeropp::kernels {

/// A row-major matrix of rows × columns as stored; `transposed` says to read it the other way.
template <class T>
struct MatrixView {
  T* data;
  std::int64_t rows, columns;  ///< as seen
  std::int64_t stride;         ///< elements between stored rows
  bool transposed = false;

  MatrixView t() const { return {data, columns, rows, stride, !transposed}; }
  MatrixView block(std::int64_t row, std::int64_t column, std::int64_t r, std::int64_t c) const {
    return {data + (transposed ? column * stride + row : row * stride + column), r, c, stride, transposed};
  }
};
template <class T>
MatrixView<T> row_major(T* data, std::int64_t rows, std::int64_t columns) {
  return {data, rows, columns, columns};
}

enum class Into { overwrite, add };

namespace detail {

inline constexpr std::int64_t matmul_tile = 512;

template <class C>
using EigenMatrix = Eigen::Matrix<C, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class C>
auto eigen(MatrixView<C> m) {
  using Matrix = std::conditional_t<std::is_const_v<C>, const EigenMatrix<std::remove_const_t<C>>, EigenMatrix<C>>;
  const auto rows = m.transposed ? m.columns : m.rows, columns = m.transposed ? m.rows : m.columns;
  return Eigen::Map<Matrix, 0, Eigen::OuterStride<>>(m.data, rows, columns, Eigen::OuterStride<>(m.stride));
}

/// c = a·b or c += a·b for one element type, on the calling thread.
template <class C>
void product(MatrixView<const C> a, MatrixView<const C> b, MatrixView<C> c, Into into) {
  if (c.rows == 0 || c.columns == 0) return;
  const auto A = eigen(a), B = eigen(b);
  auto to = eigen(c);
  auto store = [&](const auto& p) {
    if (into == Into::add)
      to.noalias() += p;
    else
      to.noalias() = p;
  };
  if (a.transposed && b.transposed)
    store(A.transpose() * B.transpose());
  else if (a.transposed)
    store(A.transpose() * B);
  else if (b.transposed)
    store(A * B.transpose());
  else
    store(A * B);
}

/// The operand in the compute type: itself, or a copy in `scratch`.
template <class T>
MatrixView<const compute_t<T>> computable(MatrixView<T> m, std::vector<compute_t<T>>& scratch) {
  using C = compute_t<T>;
  if constexpr (std::is_same_v<std::remove_const_t<T>, C>) {
    return {m.data, m.rows, m.columns, m.stride, m.transposed};
  } else {
    const auto rows = m.transposed ? m.columns : m.rows, columns = m.transposed ? m.rows : m.columns;
    scratch.resize(static_cast<std::size_t>(rows * columns));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        scratch[static_cast<std::size_t>(r * columns + c)] = static_cast<C>(m.data[r * m.stride + c]);
    return {scratch.data(), m.rows, m.columns, columns, m.transposed};
  }
}

/// One tile: converts where an operand is stored in another type than it is computed in. Scratch is bounded by
/// (tile + the smaller side) · depth elements a thread.
template <class A, class B, class T, class Bias>
void tile(MatrixView<A> a, MatrixView<B> b, MatrixView<T> c, Into into, const Bias* bias) {
  using C = compute_t<T>;
  static thread_local std::vector<C> a_scratch, b_scratch, c_scratch;
  const auto ca = computable(a, a_scratch), cb = computable(b, b_scratch);
  if constexpr (std::is_same_v<T, C>) {
    product<C>(ca, cb, c, into);
    if (bias)
      for (std::int64_t r = 0; r < c.rows; ++r)
        for (std::int64_t k = 0; k < c.columns; ++k) c.data[r * c.stride + k] += static_cast<C>(bias[k]);
  } else {
    c_scratch.resize(static_cast<std::size_t>(c.rows * c.columns));
    product<C>(ca, cb, row_major(c_scratch.data(), c.rows, c.columns), Into::overwrite);
    for (std::int64_t r = 0; r < c.rows; ++r)
      for (std::int64_t k = 0; k < c.columns; ++k) {
        T& to = c.data[r * c.stride + k];
        C value = c_scratch[static_cast<std::size_t>(r * c.columns + k)];
        if (bias) value += static_cast<C>(bias[k]);
        to = static_cast<T>(into == Into::add ? static_cast<C>(to) + value : value);
      }
  }
}

}  // namespace detail

/// c = a·b, or c += a·b; with `bias` [columns of c] added to every row. c is not transposed and overlaps neither
/// operand. Element types may differ; the product is computed in float, or in double where all are double.
template <Device D, class A, class B, class T, class Bias = compute_t<T>>
void matmul(D& device, MatrixView<A> a, MatrixView<B> b, MatrixView<T> c, Into into = Into::overwrite,
            const Bias* bias = nullptr) {
  if (a.columns != b.rows || c.rows != a.rows || c.columns != b.columns || c.transposed)
    throw ConfigError(text("a matrix product of ", a.rows, "x", a.columns, " by ", b.rows, "x", b.columns, " into ",
                           c.rows, "x", c.columns, c.transposed ? " (transposed)" : "", " does not fit"));
  const double m = static_cast<double>(c.rows), n = static_cast<double>(c.columns), k = static_cast<double>(a.columns);
  const Cost cost{
      .name = "matmul", .flops = 2 * m * n * k, .bytes = m * k * sizeof(A) + k * n * sizeof(B) + m * n * sizeof(T)};
  device.run(cost, [&](auto& workers) {
    const bool by_rows = c.rows >= c.columns;
    workers.for_each(by_rows ? c.rows : c.columns, detail::matmul_tile, [&](std::int64_t begin, std::int64_t end) {
      if (by_rows)
        detail::tile(a.block(begin, 0, end - begin, a.columns), b, c.block(begin, 0, end - begin, c.columns), into,
                     bias);
      else
        detail::tile(a, b.block(0, begin, b.rows, end - begin), c.block(0, begin, c.rows, end - begin), into,
                     bias ? bias + begin : nullptr);
    });
  });
}

/// y [n, out] = x [n, in] · wᵀ + bias, with w [out, in]; bias [out] may be null.
template <Device D, class X, class W, class Y>
void linear_forward(D& device, const X* x, const W* w, const W* bias, Y* y, std::int64_t n, std::int64_t in,
                    std::int64_t out) {
  matmul(device, row_major(x, n, in), row_major(w, out, in).t(), row_major(y, n, out), Into::overwrite, bias);
}

/// dx [n, in] = dy [n, out] · w [out, in].
template <Device D, class Dy, class W, class Dx>
void linear_backward_input(D& device, const Dy* dy, const W* w, Dx* dx, std::int64_t n, std::int64_t in,
                           std::int64_t out, Into into = Into::overwrite) {
  matmul(device, row_major(dy, n, out), row_major(w, out, in), row_major(dx, n, in), into);
}

/// dw [out, in] += dyᵀ · x.
template <Device D, class Dy, class X, class G>
void linear_backward_weight(D& device, const Dy* dy, const X* x, G* dw, std::int64_t n, std::int64_t in,
                            std::int64_t out) {
  matmul(device, row_major(dy, n, out).t(), row_major(x, n, in), row_major(dw, out, in), Into::add);
}

/// sum [width] += the rows of x [n, width], in order.
template <Device D, class X, class G>
void column_sum(D& device, const X* x, G* sum, std::int64_t n, std::int64_t width) {
  using C = compute_t<X>;
  const auto count = static_cast<double>(n * width);
  device.run({.name = "column sum", .flops = count, .bytes = count * sizeof(X)}, [&](auto& workers) {
    constexpr std::int64_t strip = 128;
    workers.for_each(width, strip, [&](std::int64_t begin, std::int64_t end) {
      C total[strip] = {};
      for (std::int64_t row = 0; row < n; ++row)
        for (auto i = begin; i < end; ++i) total[i - begin] += static_cast<C>(x[row * width + i]);
      for (auto i = begin; i < end; ++i) sum[i] += static_cast<compute_t<G>>(total[i - begin]);
    });
  });
}

}  // namespace zeropp::kernels
