// SPDX-License-Identifier: Apache-2.0
// Matrix products on GPUs: cuBLASLt where it has an algorithm, with bias, GELU, their backward and the sum with another
// matrix in the product's own epilogue; composed of a plain product and a pass where it has none (float and double have
// no GELU there; bf16 and f16 need 16-byte rows). Sums are in float for these and float, in double for double. A fused
// result of 16 bits is rounded once; a composed one is rounded before the pass too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cuda/column_sum.hpp>
#include <zeropp/kernels/cuda/matmul_kernels.hpp>
#include <zeropp/kernels/cuda/products.hpp>
#include <zeropp/kernels/matmul.hpp>

namespace zeropp::kernels {

namespace detail {

/// Alignment of an address in bytes, as far as it matters: 16 at most.
inline std::uint32_t alignment_of(const void* at) {
  const auto bits = reinterpret_cast<std::uintptr_t>(at) | 16;
  return static_cast<std::uint32_t>(bits & (~bits + 1));
}

/// Elements between stored rows, as cuBLASLt wants it: at least a row.
template <class T>
std::int64_t leading(const MatrixView<T>& m) {
  const auto rows = m.transposed ? m.columns : m.rows, columns = m.transposed ? m.rows : m.columns;
  return rows == 1 ? std::max(m.stride, columns) : m.stride;
}
/// Rows that do not overlap.
template <class T>
bool regular(const MatrixView<T>& m) {
  return leading(m) >= (m.transposed ? m.rows : m.columns);
}

/// Operands and results that cuBLASLt multiplies.
template <class A, class B, class T>
inline constexpr bool has_product = std::is_same_v<A, B> &&
                                    (std::is_same_v<A, T> || (is_half<A> && std::is_same_v<T, float>));

/// The product c = (onto +) a · b as cuBLASLt sees it: rows are its columns, so c' = b' · a'.
template <class A, class B, class T>
MatrixProduct product_of(const MatrixView<A>& a, const MatrixView<B>& b, const MatrixView<T>& c, const T* onto,
                         bool tf32) {
  MatrixProduct p{.m = c.columns, .n = c.rows, .k = a.columns, .lda = leading(b), .ldb = leading(a), .ldd = leading(c)};
  p.operands = cuda_type<A>;
  p.result = cuda_type<T>;
  p.turn_a = b.transposed;
  p.turn_b = a.transposed;
  p.adds = onto != nullptr;
  p.align_a = alignment_of(b.data);
  p.align_b = alignment_of(a.data);
  p.align_d = alignment_of(c.data);
  p.align_c = onto ? alignment_of(onto) : p.align_d;
  p.tf32 = tf32 && std::is_same_v<std::remove_cv_t<A>, float>;
  return p;
}

/// Enqueues c = onto + a · b + bias; onto (with the rows of c) and bias may be null, onto may be c.
template <class A, class B, class T, class Bias>
void enqueue_product(Products& products, const MatrixView<A>& a, const MatrixView<B>& b, const MatrixView<T>& c,
                     const T* onto, const Bias* bias, cudaStream_t stream) {
  using PlainA = std::remove_cv_t<A>;
  using PlainB = std::remove_cv_t<B>;
  if (c.rows == 0 || c.columns == 0) return;
  if constexpr (has_product<PlainA, PlainB, T>)
    if (a.columns > 0 && regular(a) && regular(b) && regular(c)) {
      auto product = product_of(a, b, c, onto, products.options.tf32);
      ProductPointers at{.a = b.data, .b = a.data, .c = onto, .d = c.data};
      if constexpr (std::is_same_v<Bias, T> && !std::is_same_v<T, double>)
        if (bias) {
          auto fused = product;
          fused.epilogue = CUBLASLT_EPILOGUE_BIAS;
          fused.align_bias = alignment_of(bias);
          auto with = at;
          with.bias = const_cast<Bias*>(bias);
          if (products.multiply(fused, with, stream)) return;
        }
      if (products.multiply(product, at, stream)) {
        if (bias) launch_pass<Pass::bias>(c.data, bias, c.data, c.rows, c.columns, c.stride, stream);
        return;
      }
    }
  using C = std::common_type_t<compute_t<PlainA>, compute_t<PlainB>, compute_t<T>>;
  launch_plain_product<C>(constant(a), constant(b), c, onto, bias, stream);
}

template <class T, class A, class B>
Cost product_cost(std::string_view name, std::int64_t rows, std::int64_t columns, std::int64_t depth, double extra) {
  const double m = static_cast<double>(rows), n = static_cast<double>(columns), k = static_cast<double>(depth);
  return {.name = name,
          .kind = CostKind::product,
          .flops = 2 * m * n * k,
          .bytes = m * k * sizeof(A) + k * n * sizeof(B) + (1 + extra) * m * n * sizeof(T)};
}

/// GELU as an epilogue: bf16 or f16 whose rows and auxiliary matrix lie on 16 bytes.
template <class A, class B, class T>
bool has_gelu(const T* aux, std::int64_t width) {
  return is_half<A> && std::is_same_v<B, A> && std::is_same_v<T, A> && width % 8 == 0 && alignment_of(aux) == 16;
}

}  // namespace detail

/// As the host's. Bits depend on the algorithm: see products.hpp.
template <CudaDevice D, class A, class B, class T, class Bias = compute_t<T>>
void matmul(D& device, MatrixView<A> a, MatrixView<B> b, MatrixView<T> c, Into into = Into::overwrite,
            const Bias* bias = nullptr) {
  if (a.columns != b.rows || c.rows != a.rows || c.columns != b.columns || c.transposed)
    throw ConfigError(text("a matrix product of ", a.rows, "x", a.columns, " by ", b.rows, "x", b.columns, " into ",
                           c.rows, "x", c.columns, c.transposed ? " (transposed)" : "", " does not fit"));
  auto& products = device.template companion<Products>();
  const T* onto = into == Into::add ? c.data : nullptr;
  device.run(detail::product_cost<T, A, B>("matmul", c.rows, c.columns, a.columns, onto ? 1 : 0),
             [&](cudaStream_t stream) { detail::enqueue_product(products, a, b, c, onto, bias, stream); });
}

/// y [n, out] = onto + x [n, in] · wᵀ + bias, with w [out, in]; bias [out] and onto [n, out] may be null, onto may be
/// y.
template <CudaDevice D, class X, class W, class Y>
void linear_forward(D& device, const X* x, const W* w, const W* bias, Y* y, std::int64_t n, std::int64_t in,
                    std::int64_t out, const Y* onto = nullptr) {
  auto& products = device.template companion<Products>();
  device.run(detail::product_cost<Y, X, W>("linear", n, out, in, onto ? 1 : 0), [&](cudaStream_t stream) {
    detail::enqueue_product(products, row_major(x, n, in), row_major(w, out, in).t(), row_major(y, n, out), onto, bias,
                            stream);
  });
}

/// pre [n, out] = x · wᵀ + bias and y = gelu(pre); bias may be null. Fused, GELU sees pre before it is rounded.
template <CudaDevice D, class X, class W, class Y>
void linear_gelu_forward(D& device, const X* x, const W* w, const W* bias, Y* pre, Y* y, std::int64_t n,
                         std::int64_t in, std::int64_t out) {
  auto& products = device.template companion<Products>();
  device.run(detail::product_cost<Y, X, W>("linear gelu", n, out, in, 1), [&](cudaStream_t stream) {
    const auto a = row_major(x, n, in);
    const auto b = row_major(w, out, in).t();
    if (n * in * out > 0 && products.options.fused_gelu && detail::has_gelu<X, W>(pre, out)) {
      auto product = detail::product_of(a, b, row_major(y, n, out), static_cast<const Y*>(nullptr), false);
      product.epilogue = bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
      product.ld_aux = out;
      product.align_bias = bias ? detail::alignment_of(bias) : 16;
      if (products.multiply(product, {.a = w, .b = x, .d = y, .bias = const_cast<W*>(bias), .aux = pre}, stream))
        return;
    }
    detail::enqueue_product(products, a, b, row_major(pre, n, out), static_cast<const Y*>(nullptr), bias, stream);
    detail::launch_pass<detail::Pass::gelu>(pre, bias, y, n, out, out, stream);
  });
}

/// dx [n, in] = gelu'(pre) ∘ (dy [n, out] · w [out, in]), with pre [n, in], which is not dx.
template <CudaDevice D, class Dy, class W, class Dx>
void linear_gelu_backward_input(D& device, const Dy* dy, const W* w, const Dx* pre, Dx* dx, std::int64_t n,
                                std::int64_t in, std::int64_t out) {
  if (pre == dx && n * in > 0)
    throw Error("the backward of linear and gelu reads pre while it writes dx: give it both");
  auto& products = device.template companion<Products>();
  device.run(detail::product_cost<Dx, Dy, W>("linear gelu backward", n, in, out, 1), [&](cudaStream_t stream) {
    const auto a = row_major(dy, n, out);
    const auto b = row_major(w, out, in);
    const auto c = row_major(dx, n, in);
    if (n * in * out > 0 && products.options.fused_gelu && detail::has_gelu<Dy, W>(pre, in)) {
      auto product = detail::product_of(a, b, c, static_cast<const Dx*>(nullptr), false);
      product.epilogue = CUBLASLT_EPILOGUE_DGELU;
      product.ld_aux = in;
      if (products.multiply(product, {.a = w, .b = dy, .d = dx, .aux = const_cast<Dx*>(pre)}, stream)) return;
    }
    detail::enqueue_product(products, a, b, c, static_cast<const Dx*>(nullptr), static_cast<const W*>(nullptr), stream);
    detail::launch_pass<detail::Pass::gelu_backward>(pre, static_cast<const W*>(nullptr), dx, n, in, in, stream);
  });
}

/// dw [out, in] = or += dyᵀ · x, and dbias [out] = or += the column sums of dy [n, out], unless null. Sums for a float
/// dbias of bf16 or f16 come from the product's epilogue, where that is asked for (ProductOptions) and there is one.
template <CudaDevice D, class Dy, class X, class G>
void linear_backward_weight(D& device, const Dy* dy, const X* x, G* dw, G* dbias, std::int64_t n, std::int64_t in,
                            std::int64_t out, Into into = Into::add) {
  auto& products = device.template companion<Products>();
  const auto a = row_major(dy, n, out).t();
  const auto b = row_major(x, n, in);
  const auto c = row_major(dw, out, in);
  if constexpr (is_half<Dy> && std::is_same_v<X, Dy> && std::is_same_v<G, float>)
    if (dbias && n * in * out > 0 && products.options.fused_bias_gradient) {
      bool fused = D::dry;
      const G* onto = into == Into::add ? dw : nullptr;
      Tensor<float, 1> fresh(device.pool(), {out}, Purpose::buffers);
      device.run(detail::product_cost<G, Dy, X>("linear backward", out, in, n, 1), [&](cudaStream_t stream) {
        auto product = detail::product_of(a, b, c, onto, false);
        product.epilogue = CUBLASLT_EPILOGUE_BGRADB;
        auto* sums = into == Into::add ? fresh.data() : dbias;
        product.align_bias = detail::alignment_of(sums);
        fused = products.multiply(product, {.a = x, .b = dy, .c = onto, .d = dw, .bias = sums}, stream);
        if (fused && into == Into::add)
          detail::launch_pass<detail::Pass::accumulate>(sums, dbias, dbias, 1, out, out, stream);
      });
      if (fused) return;
    }
  matmul(device, a, b, c, into);
  if (dbias) column_sum(device, dy, dbias, n, out, into);
}

}  // namespace zeropp::kernels
