// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU: TFLOP/s of each backend forward and backward, next to each other, and the product of matrices
// that bounds them, measured in the same run. The causal half is counted: 2 products forward, 5 backward, whatever a
// kernel computes beyond. Inputs are random; every call takes another of several sets, larger than the L2 cache
// together.
//   gpu_attention              prints a table
//   gpu_attention --variants   and the same of tiles of other sizes, each kernel by itself
#include <cublasLt.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/cuda/attention/launch.hpp>

using namespace zeropp;
using kernels::AttentionBackend;
using kernels::AttentionShape;
using kernels::CudaAttention;

namespace {

/// Median milliseconds of 20 calls, each timed by events, after a pause, so that what ran before does not slow them
/// down by its heat, and 5 that are not timed.
double median_ms(Cuda& gpu, const std::function<void(int)>& call) {
  constexpr int warm_up = 5, calls = 20;
  gpu.synchronize();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  for (int n = 0; n < warm_up; ++n) call(n);
  std::vector<CudaEvent> at;
  for (int n = 0; n <= calls; ++n) at.emplace_back(true);
  at[0].record(gpu.stream());
  for (int n = 0; n < calls; ++n) {
    call(n);
    at[static_cast<std::size_t>(n + 1)].record(gpu.stream());
  }
  gpu.synchronize();
  std::vector<float> ms(calls);
  for (std::size_t n = 0; n < ms.size(); ++n)
    cuda_check(cudaEventElapsedTime(&ms[n], at[n].get(), at[n + 1].get()), "cudaEventElapsedTime");
  std::sort(ms.begin(), ms.end());
  return ms[calls / 2];
}

Tensor<bf16, 1> random_tensor(Cuda& gpu, std::int64_t n, std::uint64_t seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<bf16> block(1 << 20);  // normal numbers, repeated beyond a million
  std::normal_distribution<float> normal;
  for (auto& x : block) x = bf16(normal(random));
  Tensor<bf16, 1> tensor(gpu.pool(), {n});
  for (std::int64_t at = 0; at < n; at += 1 << 20)
    gpu.upload(tensor.data() + at, block.data(), static_cast<std::size_t>(std::min<std::int64_t>(1 << 20, n - at)) * 2);
  gpu.synchronize();
  return tensor;
}

/// The rate of a large product of bf16 matrices through cuBLASLt, 8192 cubed.
double product_tflops(Cuda& gpu) {
  constexpr std::int64_t n = 8192;
  const auto a = random_tensor(gpu, n * n, 1), b = random_tensor(gpu, n * n, 2), c = random_tensor(gpu, n * n, 3);
  const Tensor<std::byte, 1> workspace(gpu.pool(), {32 << 20}, Purpose::buffers);
  cublasLtHandle_t handle{};
  cublasLtMatmulDesc_t product{};
  cublasLtMatrixLayout_t layout{};
  cublasLtMatmulPreference_t preference{};
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  std::size_t bytes = 32 << 20;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const bool ready = cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                    sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, n, n, n) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                          sizeof bytes) == CUBLAS_STATUS_SUCCESS &&
                     cublasLtMatmulAlgoGetHeuristic(handle, product, layout, layout, layout, layout, preference, 1,
                                                    &found, &count) == CUBLAS_STATUS_SUCCESS &&
                     count > 0;
  if (!ready) return 0;
  const float one = 1, zero = 0;
  const double ms = median_ms(gpu, [&](int) {
    cublasLtMatmul(handle, product, &one, a.data(), layout, b.data(), layout, &zero, c.data(), layout, c.data(), layout,
                   &found.algo, workspace.data(), bytes, gpu.stream());
  });
  cublasLtDestroy(handle);
  return 2.0 * n * n * n / ms * 1e-9;
}

struct Set {
  Tensor<bf16, 1> qkv, out, dout, dqkv;
  Tensor<float, 1> lse;
};

struct Contender {
  std::string name;
  AttentionBackend backend;
  bool deterministic;
};

void measure(Cuda& gpu, const AttentionShape& s, double ceiling) {
  const auto width = (s.heads + 2 * s.kv_heads) * s.head_size, heads = s.heads * s.head_size;
  const auto rows = s.batch * s.sequence;
  std::vector<Set> sets;
  const auto count =
      std::max<std::int64_t>(2, ceil_div(static_cast<std::int64_t>(2 * gpu.properties().l2_cache), rows * width * 2));
  for (std::int64_t i = 0; i < std::min<std::int64_t>(count, 8); ++i)
    sets.push_back({random_tensor(gpu, rows * width, 10 + static_cast<std::uint64_t>(i)),
                    random_tensor(gpu, rows * heads, 20), random_tensor(gpu, rows * heads, 30),
                    random_tensor(gpu, rows * width, 40),
                    Tensor<float, 1>(gpu.pool(), {s.batch * s.heads * s.sequence})});
  const double half = static_cast<double>(s.batch * s.heads) * static_cast<double>(s.sequence) *
                      (static_cast<double>(s.sequence) + 1) / 2 * static_cast<double>(s.head_size);
  auto& attention = gpu.companion<CudaAttention>();
  for (const auto& contender : {Contender{"cuDNN, deterministic", AttentionBackend::cudnn, true},
                                Contender{"cuDNN, not deterministic", AttentionBackend::cudnn, false},
                                Contender{"warpgroups", AttentionBackend::warpgroups, true},
                                Contender{"tiles", AttentionBackend::tiles, true}}) {
    attention.options = {.backend = contender.backend, .deterministic = contender.deterministic};
    if (contender.backend == AttentionBackend::cudnn && !kernels::make_attention_provider) continue;
    const auto views = [&](const char* direction, int n, auto call) {
      Pool::Program program(
          gpu.pool(), text(direction, contender.name, " ", s.batch, " ", s.heads, " ", s.kv_heads, " ", s.head_size));
      const Set& set = sets[static_cast<std::size_t>(n) % sets.size()];
      bf16 *const x = set.qkv.data(), *const d = set.dqkv.data();
      call(set, x, d);
      program.finish();  // memory for workspace, from the second call on, as in a step
    };
    const auto key_at = heads, value_at = heads + s.kv_heads * s.head_size;
    const auto forward = [&](int n) {
      views("forward ", n, [&](const Set& set, const bf16* x, bf16*) {
        kernels::causal_attention_forward<Cuda, bf16>(gpu, s, {x, width}, {x + key_at, width}, {x + value_at, width},
                                                      {set.out.data(), heads}, set.lse.data());
      });
    };
    const auto backward = [&](int n) {
      views("backward ", n, [&](const Set& set, const bf16* x, bf16* d) {
        kernels::causal_attention_backward<Cuda, bf16>(
            gpu, s, {x, width}, {x + key_at, width}, {x + value_at, width}, {set.out.data(), heads}, set.lse.data(),
            {set.dout.data(), heads}, {d, width}, {d + key_at, width}, {d + value_at, width});
      });
    };
    try {
      const double forward_ms = median_ms(gpu, forward);
      for (std::size_t n = 0; n < sets.size(); ++n) forward(static_cast<int>(n));  // backward of its own outputs
      const double backward_ms = median_ms(gpu, backward);
      const double forward_rate = 2 * 2 * half / forward_ms * 1e-9, backward_rate = 5 * 2 * half / backward_ms * 1e-9;
      std::printf("%4lld %5lld %3lld %3lld %4lld  %-25s %8.3f %7.0f %6.2f   %8.3f %7.0f %6.2f",
                  static_cast<long long>(s.batch), static_cast<long long>(s.sequence), static_cast<long long>(s.heads),
                  static_cast<long long>(s.kv_heads), static_cast<long long>(s.head_size), contender.name.c_str(),
                  forward_ms, forward_rate, forward_rate / ceiling, backward_ms, backward_rate,
                  backward_rate / ceiling);
      if (contender.backend == AttentionBackend::cudnn) {  // what it asks for next to what a plan reckons with
        const Set& set = sets[0];
        const kernels::AttentionCall call{.s = s,
                                          .q = {set.qkv.data(), width},
                                          .k = {set.qkv.data() + key_at, width},
                                          .v = {set.qkv.data() + value_at, width},
                                          .out = {},
                                          .saved_out = {set.out.data(), heads},
                                          .dout = {set.dout.data(), heads},
                                          .saved_lse = set.lse.data(),
                                          .dq = {set.dqkv.data(), width},
                                          .dk = {set.dqkv.data() + key_at, width},
                                          .dv = {set.dqkv.data() + value_at, width},
                                          .deterministic = contender.deterministic};
        std::string why;
        std::printf("   %7.1f of %7.1f MiB",
                    static_cast<double>(attention.provider().prepare(call, why).value_or(0)) / 1048576,
                    static_cast<double>(attention.workspace(call)) / 1048576);
      }
      std::printf("\n");
    } catch (const Error& e) {
      std::printf("%4lld %5lld %3lld %3lld %4lld  %-25s %s\n", static_cast<long long>(s.batch),
                  static_cast<long long>(s.sequence), static_cast<long long>(s.heads),
                  static_cast<long long>(s.kv_heads), static_cast<long long>(s.head_size), contender.name.c_str(),
                  e.what());
    }
    std::fflush(stdout);
  }
}

/// Each kernel of the tiles by itself, in sizes that could be chosen; counted by the products that it computes.
template <int D>
class Variants {
 public:
  Variants(Cuda& gpu, const AttentionShape& s)
      : gpu_(gpu), s_(s), width_((s.heads + 2 * s.kv_heads) * D), heads_(s.heads * D) {
    const auto rows = s.batch * s.sequence;
    qkv_ = random_tensor(gpu, rows * width_, 1), dqkv_ = random_tensor(gpu, rows * width_, 2);
    out_ = random_tensor(gpu, rows * heads_, 3), dout_ = random_tensor(gpu, rows * heads_, 4);
    lse_ = Tensor<float, 1>(gpu.pool(), {rows * s.heads}), rows_ = Tensor<float, 1>(gpu.pool(), {2 * rows * s.heads});
    bf16 *const x = qkv_.data(), *const d = dqkv_.data();
    const auto key_at = heads_, value_at = heads_ + s.kv_heads * D;
    const auto of_packed = s.sequence * width_, of_output = s.sequence * heads_;
    call_ = {.s = s,
             .q = {x, width_, of_packed},
             .k = {x + key_at, width_, of_packed},
             .v = {x + value_at, width_, of_packed},
             .out = {out_.data(), heads_, of_output},
             .lse = lse_.data(),
             .saved_out = {out_.data(), heads_, of_output},
             .dout = {dout_.data(), heads_, of_output},
             .saved_lse = lse_.data(),
             .dq = {d, width_, of_packed},
             .dk = {d + key_at, width_, of_packed},
             .dv = {d + value_at, width_, of_packed}};
    std::printf("\n%lld x %lld, %lld heads (%lld of keys) of %d\n", static_cast<long long>(s.batch),
                static_cast<long long>(s.sequence), static_cast<long long>(s.heads), static_cast<long long>(s.kv_heads),
                D);
  }

  template <class... Tiles>
  void forward() {
    (time("forward", Tiles::queries, Tiles::keys, Tiles::warps, Tiles::blocks, 2,
          [&] { kernels::detail::forward_with<Tiles, bf16>(call_, gpu_.stream()); }),
     ...);
    kernels::detail::backward_with<kernels::detail::KeyTile<bf16, D>, kernels::detail::QueryTile<bf16, D>, bf16>(
        call_, rows_.data(), gpu_.stream());
  }
  template <class... Tiles>
  void keys() {
    (time("dk, dv", Tiles::queries, Tiles::keys, Tiles::warps, Tiles::blocks, 4,
          [&] {
            run(kernels::detail::attention_backward_keys<Tiles, bf16>, s_.kv_heads * ceil_div(s_.sequence, Tiles::keys),
                Tiles::threads, Tiles::shared_bytes);
          }),
     ...);
  }
  template <class... Tiles>
  void queries() {
    (time("dq", Tiles::queries, Tiles::keys, Tiles::warps, Tiles::blocks, 3,
          [&] {
            run(kernels::detail::attention_backward_queries<Tiles, bf16>,
                s_.heads * ceil_div(s_.sequence, Tiles::queries), Tiles::threads, Tiles::shared_bytes);
          }),
     ...);
  }

  template <class... Tiles>
  void forward_by_warpgroups() {
    (by_warpgroups<Tiles>("forward", kernels::detail::attention_forward_warpgroups<Tiles, bf16>, 2), ...);
  }
  template <class... Tiles>
  void backward_by_warpgroups() {
    (by_warpgroups<Tiles>(Tiles::owns_keys ? "dk, dv" : "dq",
                          kernels::detail::attention_backward_warpgroups<Tiles, bf16>, Tiles::owns_keys ? 4 : 3),
     ...);
  }

 private:
  void run(void (*kernel)(kernels::detail::AttentionTiles<bf16>), std::int64_t blocks, int threads, int shared_bytes) {
    auto a = kernels::detail::tiles_of<bf16, bf16>(call_);
    a.rows = rows_.data();
    kernels::detail::launch_attention(kernel, s_.batch * blocks, threads, shared_bytes, gpu_.stream(), a);
  }
  template <class Tile, class Kernel>
  void by_warpgroups(const char* name, Kernel* kernel, int products) {
    auto a = kernels::detail::tiles_of<bf16, bf16>(call_);
    a.rows = rows_.data();
    const Tensor<unsigned, 1> counter(gpu_.pool(), {1});
    time(name, Tile::owns_keys ? Tile::moving : Tile::own, Tile::owns_keys ? Tile::own : Tile::moving, 12, 1, products,
         [&] {
           cuda_check(cudaMemsetAsync(counter.data(), 0, sizeof(unsigned), gpu_.stream()), "cudaMemsetAsync");
           kernels::detail::launch_warpgroups<Tile>(kernel, call_, a, counter.data(), gpu_.stream());
         });
  }
  template <class F>
  void time(const char* name, int queries, int keys, int warps, int blocks, int products, F f) {
    try {
      const double ms = median_ms(gpu_, [&](int) { f(); });
      const double half =
          static_cast<double>(s_.batch * s_.heads * s_.sequence) * (static_cast<double>(s_.sequence) + 1) / 2 * D;
      std::printf("%-8s %3d queries x %3d keys, %d warps, %d blocks: %8.3f ms %6.0f TFLOP/s\n", name, queries, keys,
                  warps, blocks, ms, products * 2 * half / ms * 1e-9);
    } catch (const Error& e) {
      std::printf("%-8s %3d queries x %3d keys: %s\n", name, queries, keys, e.what());
    }
    std::fflush(stdout);
  }

  Cuda& gpu_;
  AttentionShape s_;
  std::int64_t width_, heads_;
  Tensor<bf16, 1> qkv_, out_, dout_, dqkv_;
  Tensor<float, 1> lse_, rows_;
  kernels::AttentionCall call_;
};

void variants(Cuda& gpu) {
  using kernels::detail::ForwardTile, kernels::detail::KeyTile, kernels::detail::QueryTile;
  using kernels::detail::ForwardWarpgroups, kernels::detail::KeyWarpgroups, kernels::detail::QueryWarpgroups;
  using kernels::detail::WarpgroupTile, kernels::detail::Owns;
  for (const AttentionShape& s : {AttentionShape{16, 1024, 25, 25, 64}, AttentionShape{64, 1024, 12, 12, 64},
                                  AttentionShape{4, 4096, 16, 16, 64}}) {
    Variants<64> v(gpu, s);
    v.forward<ForwardTile<bf16, 64, 64, 2>, ForwardTile<bf16, 64, 32, 3>>();
    v.keys<KeyTile<bf16, 64, 4, 32, 2>>();
    v.queries<QueryTile<bf16, 64, 64, 2>>();
    v.forward_by_warpgroups<ForwardWarpgroups<bf16, 64>, WarpgroupTile<bf16, 64, Owns::queries, 64, 6, 2>>();
    v.backward_by_warpgroups<KeyWarpgroups<bf16, 64>, WarpgroupTile<bf16, 64, Owns::keys_gradients, 64, 6, 2>,
                             QueryWarpgroups<bf16, 64>, WarpgroupTile<bf16, 64, Owns::queries_gradients, 64, 6, 2>>();
  }
  for (const AttentionShape& s : {AttentionShape{2, 4096, 16, 16, 128}, AttentionShape{2, 4096, 32, 8, 128}}) {
    Variants<128> v(gpu, s);
    v.forward<ForwardTile<bf16, 128, 64, 2>>();
    v.keys<KeyTile<bf16, 128, 4, 64, 2>>();
    v.queries<QueryTile<bf16, 128, 32, 2>>();
    v.forward_by_warpgroups<ForwardWarpgroups<bf16, 128>, WarpgroupTile<bf16, 128, Owns::queries, 64, 4, 2>>();
    v.backward_by_warpgroups<KeyWarpgroups<bf16, 128>, QueryWarpgroups<bf16, 128>,
                             WarpgroupTile<bf16, 128, Owns::queries_gradients, 128, 2, 1>>();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool with_variants = argc == 2 && std::string(argv[1]) == "--variants";
  if (argc > 1 && !with_variants) {
    std::fprintf(stderr, "unknown option %s; there is --variants\n", argv[1]);
    return 2;
  }
  if (cuda_devices() == 0) {
    std::puts("skipped: this machine has no GPU");
    return 77;
  }
  try {
    Cuda gpu;
    const double ceiling = product_tflops(gpu);
    std::printf("%s; product of 8192³ in bf16: %.0f TFLOP/s\n", gpu.properties().name.c_str(), ceiling);
    std::printf("   B     T   H Hkv    D  %-25s %8s %7s %6s   %8s %7s %6s   workspace, of planned\n", "", "fwd ms",
                "TFLOP/s", "of it", "bwd ms", "TFLOP/s", "of it");
    for (const AttentionShape& s : {AttentionShape{64, 1024, 12, 12, 64}, AttentionShape{16, 1024, 25, 25, 64},
                                    AttentionShape{4, 4096, 16, 16, 64}, AttentionShape{2, 4096, 16, 16, 128},
                                    AttentionShape{2, 4096, 32, 32, 128}, AttentionShape{2, 4096, 32, 8, 128}})
      measure(gpu, s, ceiling);
    if (with_variants) variants(gpu);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return static_cast<int>(e.exit_code());
  }
}
