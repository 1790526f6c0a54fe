// SPDX-License-Identifier: Apache-2.0
// Matrix products and the head on a GPU, at the shapes of GPT-2 124M and 1558M: TFLOP/s of each product plain, with its
// epilogue, and with what the epilogue does in a pass of its own; the algorithms chosen; the head and its cross entropy
// beside the products alone. Ceilings are measured in the same run.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/kernels/matmul.hpp>

using namespace zeropp;

namespace {

__global__ void draw(bf16* x, std::int64_t n, float scale) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    auto h = static_cast<std::uint32_t>(i) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    h ^= h >> 13;
    x[i] = bf16(scale * (static_cast<float>(h) * 0x1p-31f - 1));
  }
}

/// Median milliseconds of `runs`, after two that do not count.
double median(Cuda& gpu, const std::function<void()>& body, int runs = 15) {
  body(), body();
  gpu.synchronize();
  std::vector<double> times;
  CudaEvent begin(true), end(true);
  for (int i = 0; i < runs; ++i) {
    begin.record(gpu.stream());
    body();
    end.record(gpu.stream());
    end.wait();
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
    times.push_back(static_cast<double>(milliseconds));
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
}

struct Bench {
  Cuda gpu;
  kernels::Products& products = gpu.companion<kernels::Products>();

  Tensor<bf16, 1> drawn(std::int64_t n, float scale = 1) {
    Tensor<bf16, 1> x(gpu.pool(), {n});
    gpu.run({.name = "draw"}, [&](cudaStream_t stream) { draw<<<1024, 256, 0, stream>>>(x.data(), n, scale); });
    return x;
  }

  void line(const char* name, std::int64_t n, std::int64_t in, std::int64_t out, const std::function<void()>& body) {
    const double milliseconds = median(gpu, body);
    std::printf("%-34s %6ld x %5ld x %5ld  %8.3f ms  %6.1f TFLOP/s\n", name, static_cast<long>(n),
                static_cast<long>(out), static_cast<long>(in), milliseconds,
                2e-9 * static_cast<double>(n) * static_cast<double>(in) * static_cast<double>(out) / milliseconds);
    std::fflush(stdout);
  }

  double copy_speed() {
    constexpr std::size_t bytes = std::size_t{1} << 30;
    Tensor<std::byte, 1> from(gpu.pool(), {bytes}), to(gpu.pool(), {bytes});
    const double milliseconds = median(gpu, [&] {
      cuda_check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, gpu.stream()), "copy");
    });
    return 2e-6 * static_cast<double>(bytes) / milliseconds;
  }

  /// A linear layer in training; `gelu` and `onto` as GPT-2 has them around it.
  void linear(std::int64_t n, std::int64_t in, std::int64_t out, bool gelu, bool gelu_before, bool onto) {
    const bf16* none = nullptr;
    const auto x = drawn(n * in), w = drawn(out * in, 0.05f), b = drawn(out), dy = drawn(n * out), res = drawn(n * out);
    Tensor<bf16, 1> y(gpu.pool(), {n * out}), pre(gpu.pool(), {n * out}), dx(gpu.pool(), {n * in});
    Tensor<float, 1> dw(gpu.pool(), {out * in}), db(gpu.pool(), {out});
    cuda_check(cudaMemsetAsync(dw.data(), 0, static_cast<std::size_t>(out * in) * 4, gpu.stream()), "memset");
    cuda_check(cudaMemsetAsync(db.data(), 0, static_cast<std::size_t>(out) * 4, gpu.stream()), "memset");
    auto& options = products.options;
    using namespace kernels;
    line("forward", n, in, out, [&] { linear_forward(gpu, x.data(), w.data(), none, y.data(), n, in, out, none); });
    line("  + bias", n, in, out,
         [&] { linear_forward(gpu, x.data(), w.data(), b.data(), y.data(), n, in, out, none); });
    if (onto) {
      const bf16* other = res.data();
      line("  + bias + residual", n, in, out,
           [&] { linear_forward(gpu, x.data(), w.data(), b.data(), y.data(), n, in, out, other); });
    }
    for (bool fused : {true, false}) {
      options.fused_gelu = options.fused_bias_gradient = fused;
      if (gelu)
        line(fused ? "  + bias + gelu, fused" : "  + bias, gelu in a pass", n, in, out,
             [&] { linear_gelu_forward(gpu, x.data(), w.data(), b.data(), pre.data(), y.data(), n, in, out); });
    }
    line("backward, input", n, out, in,
         [&] { linear_backward_input(gpu, dy.data(), w.data(), dx.data(), n, in, out); });
    for (bool fused : {true, false}) {
      options.fused_gelu = options.fused_bias_gradient = fused;
      if (gelu_before)
        line(fused ? "  x gelu', fused" : "  x gelu' in a pass", n, out, in, [&] {
          linear_gelu_backward_input(gpu, dy.data(), w.data(), static_cast<const bf16*>(x.data()), dx.data(), n, in,
                                     out);
        });
    }
    line("backward, weight", n, in, out, [&] {
      linear_backward_weight(gpu, dy.data(), x.data(), dw.data(), static_cast<float*>(nullptr), n, in, out);
    });
    for (bool fused : {true, false}) {
      options.fused_gelu = options.fused_bias_gradient = fused;
      line(fused ? "  + bias gradient, fused" : "  + bias gradient in a pass", n, in, out,
           [&] { linear_backward_weight(gpu, dy.data(), x.data(), dw.data(), db.data(), n, in, out); });
    }
    options.fused_gelu = options.fused_bias_gradient = true;
  }

  void head(std::int64_t n, std::int64_t width, std::int64_t vocabulary, std::int64_t used, double copy) {
    const auto rows = kernels::detail::head_rows(n, vocabulary, width, 2, gpu.properties().multiprocessors);
    const auto stride = kernels::detail::logits_stride(vocabulary, 2);
    const auto x = drawn(n * width), w = drawn(vocabulary * width, 0.05f);
    Tensor<bf16, 1> dx(gpu.pool(), {n * width});
    Tensor<float, 1> dw(gpu.pool(), {vocabulary * width});
    cuda_check(cudaMemsetAsync(dw.data(), 0, static_cast<std::size_t>(vocabulary * width) * 4, gpu.stream()), "memset");
    std::vector<std::int32_t> host(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < host.size(); ++i)
      host[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i * 7919) % used);
    Tensor<std::int32_t, 1> labels(gpu.pool(), {n});
    gpu.upload(labels.data(), host.data(), host.size() * 4);
    const std::span<const std::int32_t> all{labels.data(), host.size()};
    std::printf("\nhead, %ld x %ld x %ld, tiles of %ld rows: %.0f MB of logits, %.1f %% of all\n", static_cast<long>(n),
                static_cast<long>(vocabulary), static_cast<long>(width), static_cast<long>(rows),
                2e-6 * static_cast<double>(rows * stride), 100 * static_cast<double>(rows) / static_cast<double>(n));
    const double flops = 6 * static_cast<double>(n) * static_cast<double>(vocabulary) * static_cast<double>(width);
    kernels::PendingLoss last;
    const double train = median(
        gpu,
        [&] {
          last = kernels::linear_cross_entropy_backward(gpu, x.data(), w.data(), all, dx.data(), dw.data(), width,
                                                        vocabulary, used, 1.0 / static_cast<double>(n),
                                                        kernels::Into::overwrite);
        },
        7);
    std::printf("%-44s %9.3f ms  %6.1f TFLOP/s  (mean loss %.4f)\n", "loss and gradients", train, 1e-9 * flops / train,
                last.wait().sum / static_cast<double>(n));
    const double seen = median(
        gpu, [&] { last = kernels::linear_cross_entropy(gpu, x.data(), w.data(), all, width, vocabulary, used); }, 7);
    std::printf("%-44s %9.3f ms  %6.1f TFLOP/s\n", "loss alone", seen, 1e-9 * flops / 3 / seen);
    {
      Tensor<bf16, 2> logits(gpu.pool(), {rows, stride});
      const kernels::MatrixView<bf16> tile{logits.data(), rows, vocabulary, stride};
      const auto part = 2.0 * static_cast<double>(rows) * static_cast<double>(vocabulary) * static_cast<double>(width);
      const auto give = [&](const char* name, const std::function<void()>& body) {
        const double milliseconds = median(gpu, body, 7);
        std::printf("  a tile: %-34s %9.3f ms  %6.1f TFLOP/s\n", name, milliseconds, 1e-9 * part / milliseconds);
        return milliseconds;
      };
      const auto wv = kernels::row_major(static_cast<const bf16*>(w.data()), vocabulary, width);
      const auto xv = kernels::row_major(static_cast<const bf16*>(x.data()), rows, width);
      double products_only = give("logits = x w'", [&] { kernels::matmul(gpu, xv, wv.t(), tile); });
      products_only +=
          give("dx = dlogits w", [&] { kernels::matmul(gpu, tile, wv, kernels::row_major(dx.data(), rows, width)); });
      products_only += give("dw += dlogits' x", [&] {
        kernels::matmul(gpu, tile.t(), xv, kernels::row_major(dw.data(), vocabulary, width), kernels::Into::add);
      });
      Tensor<double, 1> losses(gpu.pool(), {rows});
      kernels::matmul(gpu, xv, wv.t(), tile);
      const auto kernel = [&](auto gradient) {
        return median(gpu, [&] {
          gpu.run({.name = "cross entropy"}, [&](cudaStream_t stream) {
            kernels::detail::launch_cross_entropy<decltype(gradient)::value>(
                kernels::detail::LogitRows<bf16>{logits.data(), rows, stride, used, labels.data()}, losses.data(), 1.0,
                stream);
          });
        });
      };
      const double bytes = 2.0 * static_cast<double>(rows * vocabulary);
      const double evaluated = kernel(std::false_type{}), trained = kernel(std::true_type{});
      std::printf("  a tile: %-34s %9.3f ms  %6.0f GB/s, %.0f %% of copy\n", "cross entropy", trained,
                  2e-6 * bytes / trained, 100 * 2e-6 * bytes / trained / copy);
      std::printf("  a tile: %-34s %9.3f ms  %6.0f GB/s\n", "cross entropy, loss alone", evaluated,
                  1e-6 * bytes / evaluated);
      const double tiles = static_cast<double>(n) / static_cast<double>(rows);
      std::printf("  products alone x %.2f tiles: %.3f ms; the head takes %.3f of that\n", tiles, products_only * tiles,
                  train / (products_only * tiles));
    }
    const double whole = 1e-9 * 2 * static_cast<double>(n) * static_cast<double>(stride);
    if (whole < 20) {  // as one product and one pass over whole logits
      Tensor<bf16, 2> logits(gpu.pool(), {n, stride});
      Tensor<double, 1> losses(gpu.pool(), {n});
      const kernels::MatrixView<bf16> tile{logits.data(), n, vocabulary, stride};
      const auto wv = kernels::row_major(static_cast<const bf16*>(w.data()), vocabulary, width);
      const auto xv = kernels::row_major(static_cast<const bf16*>(x.data()), n, width);
      const double at_once = median(
          gpu,
          [&] {
            kernels::matmul(gpu, xv, wv.t(), tile);
            gpu.run({.name = "cross entropy"}, [&](cudaStream_t stream) {
              kernels::detail::launch_cross_entropy<true>(
                  kernels::detail::LogitRows<bf16>{logits.data(), n, stride, used, labels.data()}, losses.data(), 1.0,
                  stream);
            });
            kernels::matmul(gpu, tile, wv, kernels::row_major(dx.data(), n, width));
            kernels::matmul(gpu, tile.t(), xv, kernels::row_major(dw.data(), vocabulary, width), kernels::Into::add);
          },
          7);
      std::printf("%-44s %9.3f ms  (%.1f GB of logits): tiles take %.3f of it\n", "the same with whole logits", at_once,
                  whole, train / at_once);
    }
  }

  void algorithms() {
    std::printf(
        "\nalgorithms (cuBLASLt's order: m,n,k,lda,ldb,ldd,ld_aux,types,turns+adds+tf32,epilogue,alignments)\n");
    products.for_each([](const kernels::MatrixProduct& product, const std::string& chosen) {
      std::printf("%-78s %s\n", product.key().c_str(), chosen.c_str());
    });
  }
};

}  // namespace

int main(int argc, char** argv) try {
  Bench bench;
  if (argc > 1) bench.products.use_folder(argv[1]);  // "": search anew and keep nothing
  std::printf("%s, cuBLASLt %zu\n", bench.gpu.properties().name.c_str(), cublasLtGetVersion());
  const double copy = bench.copy_speed();
  std::printf("copy: %.0f GB/s read and written\n\n", copy);
  bench.linear(8192, 8192, 8192, false, false, false);
  std::printf("\nGPT-2 124M, 64 x 1024 tokens\n");
  bench.linear(65536, 768, 2304, false, false, false);
  bench.linear(65536, 768, 768, false, false, true);
  bench.linear(65536, 768, 3072, true, false, false);
  bench.linear(65536, 3072, 768, false, true, true);
  std::printf("\nGPT-2 1558M, 16 x 1024 tokens\n");
  bench.linear(16384, 1600, 4800, false, false, false);
  bench.linear(16384, 1600, 1600, false, false, true);
  bench.linear(16384, 1600, 6400, true, false, false);
  bench.linear(16384, 6400, 1600, false, true, true);
  bench.head(65536, 768, 50304, 50257, copy);
  bench.head(16384, 1600, 50304, 50257, copy);
  bench.head(65536, 768, 50257, 50257, copy);
  bench.algorithms();
  return 0;
} catch (const Error& error) {
  std::fprintf(stderr, "gpu_products: %s\n", error.what());
  return static_cast<int>(error.exit_code());
}
