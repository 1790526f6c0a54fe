// SPDX-License-Identifier: Apache-2.0
// One matrix product as cuBLASLt is asked for it: sizes, element types, layouts, epilogue and alignments, which
// together decide its algorithm; and the descriptors made of that.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <zeropp/base/dtype.hpp>
#include <zeropp/device/cuda/runtime.hpp>

namespace zeropp::kernels {

/// Throws CudaError unless `result` is success.
inline void cublas_check(cublasStatus_t result, std::string_view what, Where where = Where::here()) {
  if (result == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(text(what, " failed: ", cublasLtGetStatusString(result), " (", cublasLtGetStatusName(result), ")"),
                  where);
}

template <class T>
inline constexpr cudaDataType_t cuda_type = std::is_same_v<std::remove_cv_t<T>, bf16>     ? CUDA_R_16BF
                                            : std::is_same_v<std::remove_cv_t<T>, f16>    ? CUDA_R_16F
                                            : std::is_same_v<std::remove_cv_t<T>, double> ? CUDA_R_64F
                                                                                          : CUDA_R_32F;

/// d = a · b (+ c), columns first as cuBLASLt sees it: d [m, n], a [m, k], b [k, n], either stored the other way round.
/// c and d have one type and one layout.
struct MatrixProduct {
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0, ldb = 0, ldd = 0, ld_aux = 0;  ///< elements between stored columns
  cudaDataType_t operands = CUDA_R_32F, result = CUDA_R_32F;
  bool turn_a = false, turn_b = false;
  bool adds = false;  ///< c is there
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  std::uint32_t align_a = 16, align_b = 16, align_c = 16, align_d = 16, align_bias = 16, align_aux = 16;  ///< bytes
  bool tf32 = false;

  friend auto operator<=>(const MatrixProduct&, const MatrixProduct&) = default;

  double flops() const { return 2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
  /// One word that differs where the algorithm may.
  std::string key() const {
    return text({m,
                 ",",
                 n,
                 ",",
                 k,
                 ",",
                 lda,
                 ",",
                 ldb,
                 ",",
                 ldd,
                 ",",
                 ld_aux,
                 ",",
                 static_cast<int>(operands),
                 ",",
                 static_cast<int>(result),
                 ",",
                 int{turn_a},
                 int{turn_b},
                 int{adds},
                 int{tf32},
                 ",",
                 static_cast<int>(epilogue),
                 ",",
                 align_a,
                 ",",
                 align_b,
                 ",",
                 align_c,
                 ",",
                 align_d,
                 ",",
                 align_bias,
                 ",",
                 align_aux});
  }
};

/// The operands and results of a product. c may be d; bias is read (BIAS) or overwritten (BGRADB); aux is written
/// (GELU_AUX) or read (DGELU).
struct ProductPointers {
  const void *a = nullptr, *b = nullptr, *c = nullptr;
  void *d = nullptr, *bias = nullptr, *aux = nullptr;
};

/// The descriptors of a MatrixProduct.
class ProductDescriptors {
 public:
  explicit ProductDescriptors(const MatrixProduct& p) {
    const bool wide = p.operands == CUDA_R_64F;
    const auto compute = wide ? CUBLAS_COMPUTE_64F : p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    cublas_check(cublasLtMatmulDescCreate(&operation, compute, wide ? CUDA_R_64F : CUDA_R_32F), "describing a product");
    const std::int32_t turned[2] = {p.turn_a ? CUBLAS_OP_T : CUBLAS_OP_N, p.turn_b ? CUBLAS_OP_T : CUBLAS_OP_N};
    set(CUBLASLT_MATMUL_DESC_TRANSA, turned[0]);
    set(CUBLASLT_MATMUL_DESC_TRANSB, turned[1]);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<std::uint32_t>(p.epilogue));
    if (p.ld_aux) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.ld_aux);
    a = layout(p.operands, p.turn_a ? p.k : p.m, p.turn_a ? p.m : p.k, p.lda);
    b = layout(p.operands, p.turn_b ? p.n : p.k, p.turn_b ? p.k : p.n, p.ldb);
    d = layout(p.result, p.m, p.n, p.ldd);
  }
  ProductDescriptors(ProductDescriptors&& o) noexcept
      : operation(std::exchange(o.operation, nullptr)),
        a(std::exchange(o.a, nullptr)),
        b(std::exchange(o.b, nullptr)),
        d(std::exchange(o.d, nullptr)) {}
  ProductDescriptors& operator=(ProductDescriptors&&) = delete;
  ~ProductDescriptors() {
    if (operation) cublasLtMatmulDescDestroy(operation);
    for (auto each : {a, b, d})
      if (each) cublasLtMatrixLayoutDestroy(each);
  }

  /// The pointers that are part of a description. cuBLASLt also reads their alignment when it looks for algorithms.
  void point(const ProductPointers& at) {
    if (at.bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, at.bias);
    if (at.aux) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, at.aux);
  }

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;

 private:
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    cublas_check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value), "describing a product");
  }
  static cublasLtMatrixLayout_t layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t ld) {
    cublasLtMatrixLayout_t made = nullptr;
    cublas_check(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(columns), ld),
                 "describing a matrix");
    return made;
  }
};

}  // namespace zeropp::kernels
