// SPDX-License-Identifier: Apache-2.0
// The parts of matrix products: packing into panels, and a micro kernel that keeps a small tile of the result in
// registers (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008). Every element is a sum
// over the depth in order, by the same instructions wherever it lies: bits depend neither on alignment nor on position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include <zeropp/device/memory.hpp>
#include <zeropp/kernels/vector.hpp>

#ifdef __CUDACC__  // its front end does not know GCC's unroll pragma, and says so
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif

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

namespace detail {

/// The tile of registers: rows × (vectors · lanes). One vector register is left for an element of the left operand,
/// one per column of the right.
inline constexpr int tile_rows = register_count >= 32 ? 8 : 4, tile_vectors = 3;
template <class C>
inline constexpr int tile_columns = tile_vectors* lanes<C>;

/// c [Rows, Vectors · lanes] = or += a · b over `depth` steps. a(i, p) lies at a[i · ARow + p · AStep], row p of b at
/// b + p · b_step, row i of c at c + i · stride.
template <int Rows, int Vectors, int ARow, int AStep, class C>
inline void micro(const C* a, const C* b, std::int64_t b_step, std::int64_t depth, C* c, std::int64_t stride,
                  bool add) {
  constexpr int n = lanes<C>;
  Vector<C> sum[std::size_t{Rows}][std::size_t{Vectors}];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      sum[i][j] = Vector<C>{};
      __builtin_prefetch(c + i * stride + j * n, 1);
    }
  for (std::int64_t p = 0; p < depth; ++p, a += AStep, b += b_step) {
    Vector<C> right[std::size_t{Vectors}];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) right[j] = load<n>(b + j * n);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] += a[i * ARow] * right[j];
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      C* to = c + i * stride + j * n;
      store<n, C>(to, add ? load<n>(to) + sum[i][j] : sum[i][j]);
    }
}

/// Copies `count` (at most Width) rows of m into a panel: to[p · Width + r] = m(first + r, p), 0 for missing rows.
template <int Width, class C, class T>
void pack_panel(MatrixView<const T> m, std::int64_t first, int count, C* to) {
  const T* from = m.data + first * (m.transposed ? 1 : m.stride);
  constexpr int n = std::min(lanes<C>, Width % 8 ? 4 : 8);  // side of the blocks that are transposed in registers
  static_assert(Width % n == 0);
  if (m.transposed && count == Width) {
    for (std::int64_t p = 0; p < m.columns; ++p)
      for (int r = 0; r < Width; r += n) store<n, C>(to + p * Width + r, load<n>(from + p * m.stride + r));
    return;
  }
  std::int64_t done = 0;
  if (!m.transposed && count == Width)
    for (; done + n <= m.columns; done += n)
      for (int r = 0; r < Width; r += n) {
        Vector<C, n> block[std::size_t{n}];
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) block[i] = load<n>(from + (r + i) * m.stride + done);
        transpose<n>(block);
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) store<n, C>(to + (done + i) * Width + r, block[i]);
      }
  const std::int64_t row = m.transposed ? 1 : m.stride, step = m.transposed ? m.stride : 1;
  for (auto p = done; p < m.columns; ++p)
    for (int r = 0; r < Width; ++r) to[p * Width + r] = r < count ? static_cast<C>(from[r * row + p * step]) : C{0};
}

/// All rows of m in panels of Width, one after the other; round_up(rows, Width) · columns elements.
template <int Width, class C, class T>
void pack(MatrixView<const T> m, C* to) {
  for (std::int64_t r = 0; r < m.rows; r += Width, to += Width * m.columns)
    pack_panel<Width>(m, r, static_cast<int>(std::min<std::int64_t>(Width, m.rows - r)), to);
}

/// The way back from a panel: to(r, p) = from(p, r), with `from` [columns, rows] and rows of `to` at to + r · stride.
template <class C, class T>
void unpack(const C* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, T* to,
            std::int64_t stride) {
  constexpr int n = std::min(lanes<C>, 8);
  for (std::int64_t r = 0; r < rows; r += n)
    for (std::int64_t p = 0; p < columns; p += n) {
      if (r + n <= rows && p + n <= columns) {
        Vector<C, n> block[std::size_t{n}];
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) block[i] = load<n>(from + (p + i) * from_stride + r);
        transpose<n>(block);
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) store<n, C>(to + (r + i) * stride + p, block[i]);
      } else {
        for (auto i = r; i < std::min(r + n, rows); ++i)
          for (auto j = p; j < std::min(p + n, columns); ++j)
            to[i * stride + j] = static_cast<T>(from[j * from_stride + i]);
      }
    }
}

/// Memory of one thread that grows to what is needed and stays: packed operands. Not counted in the pool.
template <class C>
class Scratch {
 public:
  /// Begins on a cache line; whatever was there before may be lost.
  C* at_least(std::int64_t elements) {
    const auto needed = static_cast<std::size_t>(elements) + alignment / sizeof(C);
    if (memory_.size() < needed) memory_ = std::vector<C>(needed);
    void* begin = memory_.data();
    auto space = memory_.size() * sizeof(C);
    return static_cast<C*>(std::align(alignment, static_cast<std::size_t>(elements) * sizeof(C), begin, space));
  }

 private:
  std::vector<C> memory_;
};

}  // namespace detail

}  // namespace zeropp::kernels

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
