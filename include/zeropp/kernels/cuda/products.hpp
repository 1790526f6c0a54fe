// SPDX-License-Identifier: Apache-2.0
// Matrix products by cuBLASLt on one device: its handle and workspace, and the algorithm of each product. A large
// product's algorithm is chosen by a short measured search the first time it is seen, a small one's by cuBLASLt's
// heuristics.
//
// Determinism: an algorithm that is the same gives the same bits. Split sums over the depth are added in the compute
// type in a workspace of this device, in order; other reductions are left out. Ranks that are threads of one process
// take one choice, whoever has measured it first, and later runs read it from the file. Where the file cannot be
// written, a search in another process may choose another algorithm for a large product, and its last bits differ.
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/product.hpp>
#include <zeropp/kernels/cuda/product_book.hpp>

namespace zeropp::kernels {

/// At `device.companion<Products>().options`; products seen before keep their algorithm.
struct ProductOptions {
  double search_from = 1e10;  ///< flops of the smallest product that is searched for; infinity: none
  int candidates = 32;        ///< of the heuristics that a search measures, 32 at most
  bool tf32 = false;          ///< float products round their operands to 10 bits of fraction: faster, and inexact
  bool fused_gelu = true;     ///< GELU and its backward as epilogues, where cuBLASLt has them
  bool fused_bias_gradient = false;  ///< bias gradients as epilogues, where cuBLASLt has them; a pass is faster
};

namespace detail {
/// A name for what cuBLASLt leaves without one, which optional needs.
struct Algorithm {
  cublasLtMatmulAlgo_t value;
};
}  // namespace detail

class Products {
 public:
  /// Kept for each device: a workspace of the size that cuBLAS recommends for Hopper, and as much where searches for
  /// products that add to their result leave theirs.
  static constexpr std::size_t workspace = std::size_t{32} << 20, scratch = std::size_t{32} << 20;

  ProductOptions options;

  template <CudaDevice D>
  explicit Products(D& device) : memory_(device.pool().take_persistent(workspace + scratch, Purpose::buffers)) {
    if constexpr (!D::dry) start(device.properties().name);
  }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;
  ~Products() {
    if (handle_) cublasLtDestroy(handle_);
  }

  /// Enqueues d = a · b (+ c). False, and nothing done, where cuBLASLt has no algorithm for it.
  bool multiply(const MatrixProduct& product, const ProductPointers& at, cudaStream_t stream) {
    auto place = plans_.find(product);
    if (place == plans_.end()) place = plans_.emplace(product, plan(product, at, stream)).first;
    auto& plan = place->second;
    if (!plan.algorithm) return false;
    plan.descriptors.point(at);
    const auto result = enqueue(plan.descriptors, *plan.algorithm, at, product.operands, product.adds, stream);
    const bool refused = result == CUBLAS_STATUS_NOT_SUPPORTED ||
                         (result == CUBLAS_STATUS_INVALID_VALUE && product.epilogue != CUBLASLT_EPILOGUE_DEFAULT);
    if (refused) {
      static_cast<void>(cudaGetLastError());
      plan.algorithm.reset();
      return false;
    }
    cublas_check(result, "a matrix product");
    return true;
  }

  /// The algorithm chosen for a product seen before: "algorithm 66, tile 128x256 (20), stages 36, split 1, measured".
  std::string chosen(const MatrixProduct& product) const {
    const auto at = plans_.find(product);
    if (at == plans_.end()) return "not seen";
    if (!at->second.algorithm) return "none";
    const auto& algorithm = *at->second.algorithm;
    return text("algorithm ", attribute(algorithm, CUBLASLT_ALGO_CONFIG_ID), ", tile ",
                attribute(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID), ", stages ",
                attribute(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID), ", split ",
                attribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM), ", ", at->second.origin);
  }
  /// The products seen, with what was chosen.
  template <class F>
  void for_each(F f) const {
    for (const auto& [product, plan] : plans_) f(product, chosen(product));
  }

  /// Forgets the algorithms in memory and keeps further ones in this folder ("": in none).
  void use_folder(const std::string& folder) {
    plans_.clear();
    book_ = ProductBook::open(folder, name_);
  }

 private:
  using Algorithm = detail::Algorithm;
  struct Plan {
    ProductDescriptors descriptors;
    std::optional<Algorithm> algorithm;
    const char* origin = "heuristic";
  };
  using Candidates = std::vector<Algorithm>;
  static_assert(sizeof(Algorithm) == sizeof(ProductBook::Entry));

  void start(const std::string& gpu) {
    cublas_check(cublasLtCreate(&handle_), "cublasLtCreate");
    name_ = text("matmul-", gpu, "-", static_cast<std::uint64_t>(cublasLtGetVersion()));
    book_ = ProductBook::open(default_cache_folder(), name_);
  }

  Plan plan(const MatrixProduct& product, const ProductPointers& at, cudaStream_t stream) {
    Plan made{ProductDescriptors(product), std::nullopt};
    made.descriptors.point(at);
    const bool large = product.flops() >= options.search_from;
    const auto key = product.key();
    const auto known = large ? book_->find(key) : std::nullopt;
    if (known && usable(made.descriptors, algorithm_of(*known))) {
      made.algorithm = algorithm_of(*known);
      made.origin = "from the book";
      return made;
    }
    const auto all = candidates(product, made.descriptors);
    if (all.empty()) return made;
    made.algorithm = all.front();
    if (!large || all.size() < 2 || capturing(stream)) return made;
    if (const auto best = fastest(product, all, at, stream)) {
      ProductBook::Entry entry;
      std::memcpy(entry.data(), &*best, sizeof entry);
      const auto agreed = algorithm_of(book_->publish(key, entry, known.has_value()));
      made.algorithm = usable(made.descriptors, agreed) ? agreed : *best;
      made.origin = "measured";
    }
    return made;
  }

  Candidates candidates(const MatrixProduct& product, const ProductDescriptors& of) const {
    cublasLtMatmulPreference_t wish = nullptr;
    cublas_check(cublasLtMatmulPreferenceCreate(&wish), "cublasLtMatmulPreferenceCreate");
    const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, cublasStatus_t (*)(cublasLtMatmulPreference_t)> owner(
        wish, &cublasLtMatmulPreferenceDestroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      cublas_check(cublasLtMatmulPreferenceSetAttribute(wish, attribute, &value, sizeof value), "wishing for products");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.align_a);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.align_b);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product.adds ? product.align_c : product.align_d);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.align_d);
    constexpr int most = 32;
    cublasLtMatmulHeuristicResult_t found[most] = {};
    int count = 0;
    const auto result = cublasLtMatmulAlgoGetHeuristic(handle_, of.operation, of.a, of.b, of.d, of.d, wish,
                                                       std::clamp(options.candidates, 1, most), found, &count);
    Candidates out;
    if (result != CUBLAS_STATUS_SUCCESS) return out;  // it has none
    for (int i = 0; i < count; ++i)
      if (const auto& each = found[i]; each.state == CUBLAS_STATUS_SUCCESS && usable(of, {each.algo}))
        out.push_back({each.algo});
    return out;
  }

  bool usable(const ProductDescriptors& of, const Algorithm& algorithm) const {
    cublasLtMatmulHeuristicResult_t result{};
    if (cublasLtMatmulAlgoCheck(handle_, of.operation, of.a, of.b, of.d, of.d, &algorithm.value, &result) !=
        CUBLAS_STATUS_SUCCESS)
      return false;
    const auto scheme = attribute(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
    return result.workspaceSize <= workspace &&
           (scheme == CUBLASLT_REDUCTION_SCHEME_NONE || scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  }
  static std::uint32_t attribute(const Algorithm& of, cublasLtMatmulAlgoConfigAttributes_t which) {
    std::uint32_t value = 0;
    std::size_t written = 0;
    static_cast<void>(cublasLtMatmulAlgoConfigGetAttribute(&of.value, which, &value, sizeof value, &written));
    return value;
  }
  static Algorithm algorithm_of(const ProductBook::Entry& entry) {
    Algorithm out;
    std::memcpy(&out.value, entry.data(), sizeof out.value);
    return out;
  }
  static bool capturing(cudaStream_t stream) {
    auto status = cudaStreamCaptureStatusNone;
    cuda_check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  cublasStatus_t enqueue(const ProductDescriptors& of, const Algorithm& algorithm, const ProductPointers& at,
                         cudaDataType_t operands, bool adds, cudaStream_t stream) const {
    const float one = 1, beta = adds ? 1 : 0;
    const double one_wide = 1, beta_wide = adds ? 1 : 0;
    const bool wide = operands == CUDA_R_64F;
    return cublasLtMatmul(handle_, of.operation, wide ? static_cast<const void*>(&one_wide) : &one, at.a, of.a, at.b,
                          of.b, wide ? static_cast<const void*>(&beta_wide) : &beta, adds ? at.c : at.d, of.d, at.d,
                          of.d, &algorithm.value, memory_.get(), workspace, stream);
  }

  /// Measures the candidates in turns, three times each, and takes the first that is within 1 % of the best. A product
  /// that overwrites its result runs in its place, before the run that counts: the same numbers end there. One that
  /// adds to d in place reads it and writes to the scratch memory, as many columns as go there. The host waits.
  std::optional<Algorithm> fastest(const MatrixProduct& product, const Candidates& all, ProductPointers at,
                                   cudaStream_t stream) const {
    auto part = product;
    if (product.adds && at.c == at.d) {
      const auto column = static_cast<std::size_t>(product.ldd) * (product.result == CUDA_R_64F   ? 8
                                                                   : product.result == CUDA_R_32F ? 4
                                                                                                  : 2);
      part.n = std::min(part.n, static_cast<std::int64_t>(scratch / column));
      if (part.n < product.n && part.n > 128) part.n -= part.n % 128;
      if (part.n == 0) return std::nullopt;
      at.d = memory_.get() + workspace;
    }
    ProductDescriptors of(part);
    of.point(at);
    constexpr int rounds = 3;
    std::vector<CudaEvent> moments;
    std::vector<bool> runs(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      runs[i] =
          usable(of, all[i]) && enqueue(of, all[i], at, part.operands, part.adds, stream) == CUBLAS_STATUS_SUCCESS;
      static_cast<void>(cudaGetLastError());
    }
    for (int round = 0; round < rounds; ++round)
      for (std::size_t i = 0; i < all.size(); ++i) {
        moments.emplace_back(true).record(stream);
        if (runs[i]) runs[i] = enqueue(of, all[i], at, part.operands, part.adds, stream) == CUBLAS_STATUS_SUCCESS;
        moments.emplace_back(true).record(stream);
      }
    moments.back().wait();
    std::vector<float> best(all.size(), std::numeric_limits<float>::infinity());
    for (std::size_t j = 0; j < moments.size(); j += 2) {
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, moments[j].get(), moments[j + 1].get()), "cudaEventElapsedTime");
      const auto i = j / 2 % all.size();
      if (runs[i]) best[i] = std::min(best[i], milliseconds);
    }
    const float limit = 1.01f * *std::min_element(best.begin(), best.end());
    for (std::size_t i = 0; i < all.size(); ++i)
      if (runs[i] && best[i] <= limit) return all[i];
    return std::nullopt;
  }

  Storage memory_;
  cublasLtHandle_t handle_ = nullptr;
  std::string name_;
  std::shared_ptr<ProductBook> book_;
  std::map<MatrixProduct, Plan> plans_;
};

}  // namespace zeropp::kernels
