// SPDX-License-Identifier: Apache-2.0
// Kernels of the GPU that are bound by memory: bytes, median time, bandwidth, and its fraction of a plain copy's (read
// and written) in the same run. Buffers rotate, so that none is in the cache from the last call. No arguments.
#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cuda/column_sum.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/initialise.hpp>
#include <zeropp/kernels/norm.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/rope.hpp>
#include <zeropp/kernels/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>
#include <zeropp/train/optimizers/adamw.hpp>

using namespace zeropp;

namespace {

constexpr int warm_up = 3, samples = 30;
double copy_rate = 0;  // bytes a second

/// Random numbers of both signs, or only positive ones, between 1/2 and 2, in float or in pairs of bf16.
__global__ void fill_noise(unsigned* to, std::int64_t words, unsigned seed, bool half, bool positive) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < words;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
    if (positive) x &= 0x7fff7fffu;
    to[i] = half ? (x & 0x80ff80ffu) | 0x3f003f00u : (x & 0x80ffffffu) | 0x3f000000u;
  }
}

template <class T>
Tensor<T, 1> random_tensor(Cuda& gpu, std::int64_t n, unsigned seed = 1, bool positive = false) {
  Tensor<T, 1> x(gpu.pool(), {n});
  const auto words = static_cast<std::int64_t>(n * sizeof(T) / 4);
  gpu.run({.name = "noise"}, [&](cudaStream_t stream) {
    fill_noise<<<1024, 256, 0, stream>>>(reinterpret_cast<unsigned*>(x.data()), words, seed, sizeof(T) == 2, positive);
  });
  return x;
}

/// Two to four sets of a kernel's buffers, more than the cache holds together.
template <class T>
struct Rotating {
  Rotating(Cuda& gpu, std::int64_t n, unsigned seed = 1, bool positive = false)
      : sets(std::clamp<std::size_t>((std::size_t{200} << 20) / (static_cast<std::size_t>(n) * sizeof(T)) + 1, 2, 4)) {
    for (std::size_t i = 0; i < sets; ++i) all[i] = random_tensor<T>(gpu, n, seed + static_cast<unsigned>(i), positive);
  }
  T* at(int i) const { return all[static_cast<std::size_t>(i) % sets].data(); }
  std::span<T> span(int i) const { return all[static_cast<std::size_t>(i) % sets].span(); }
  std::size_t sets;
  std::array<Tensor<T, 1>, 4> all;
};

/// Median microseconds of f(i); each call is a program of the pool, as within a training step.
template <class F>
double time_of(Cuda& gpu, const std::string& name, F&& f) {
  CudaEvent begin(true), end(true);
  std::vector<float> times;
  for (int i = 0; i < warm_up + samples; ++i) {
    Pool::Program program(gpu.pool(), name);
    begin.record(gpu.stream());
    f(i);
    end.record(gpu.stream());
    gpu.synchronize();
    program.finish();
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "cudaEventElapsedTime");
    if (i >= warm_up) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + samples / 2, times.end());
  return 1e3 * static_cast<double>(times[samples / 2]);
}

template <class F>
void row(Cuda& gpu, const std::string& name, double bytes, F&& f) {
  const double us = time_of(gpu, name, f), rate = bytes / us * 1e6;
  if (copy_rate == 0) copy_rate = rate;
  std::printf("%-44s %9.1f MB %9.1f us %8.0f GB/s %6.1f %%\n", name.c_str(), bytes / 1e6, us, rate / 1e9,
              100 * rate / copy_rate);
  std::fflush(stdout);
}

void elementwise(Cuda& gpu) {
  constexpr std::int64_t n = std::int64_t{65536} * 768;
  constexpr double b = n * 2.0;
  const Rotating<bf16> x(gpu, n, 1), y(gpu, n, 11), z(gpu, n, 21);
  row(gpu, "copy (the ceiling)", 2 * b,
      [&](int i) { kernels::copy(gpu, std::span<const bf16>(x.span(i)), y.span(i)); });
  row(gpu, "add bf16", 3 * b, [&](int i) { kernels::add(gpu, x.span(i), y.span(i), z.span(i)); });
  row(gpu, "scale bf16", 2 * b, [&](int i) { kernels::scale(gpu, x.span(i), 1.0001f); });
  row(gpu, "fill bf16", b, [&](int i) { kernels::fill(gpu, z.span(i), bf16{0.5f}); });
  row(gpu, "gelu bf16", 2 * b, [&](int i) { kernels::gelu_forward(gpu, x.span(i), z.span(i)); });
  row(gpu, "gelu backward bf16", 3 * b, [&](int i) { kernels::gelu_backward(gpu, x.span(i), y.span(i), z.span(i)); });
  row(gpu, "swiglu bf16", 3 * b, [&](int i) { kernels::swiglu_forward(gpu, x.span(i), y.span(i), z.span(i)); });
  {
    const Rotating<bf16> u(gpu, n, 31), v(gpu, n, 41);
    row(gpu, "swiglu backward bf16", 5 * b,
        [&](int i) { kernels::swiglu_backward(gpu, x.span(i), y.span(i), z.span(i), u.span(i), v.span(i)); });
  }
  row(gpu, "dropout bf16", 2 * b,
      [&](int i) { kernels::dropout(gpu, x.span(i), z.span(i), 0.1f, Random(1, RandomPurpose::dropout), {}); });
  const Rotating<float> f(gpu, n, 51);
  row(gpu, "convert bf16 to float", 3 * b, [&](int i) { kernels::convert(gpu, x.span(i), f.span(i)); });
  row(gpu, "convert float to bf16", 3 * b, [&](int i) { kernels::convert(gpu, f.span(i), z.span(i)); });
  row(gpu, "rope bf16, 64 x 1024 x 12 x 64", 2 * b,
      [&](int i) { kernels::rope(gpu, x.at(i), 768, 64, 1024, 12, 64, 10000.0, kernels::Turn::forward); });
  row(gpu, "sum of squares bf16 (with the host's wait)", b, [&](int i) { kernels::sum_of_squares(gpu, x.span(i)); });
  row(gpu, "sum of squares float (with the host's wait)", 2 * b,
      [&](int i) { kernels::sum_of_squares(gpu, f.span(i)); });
  std::vector<int> places(24);
  std::iota(places.begin(), places.end(), 0);
  const Tensor<double, 1> sums(gpu.pool(), {24}, Purpose::buffers);
  row(gpu, "sums of squares, 24 parts, float", 2 * b, [&](int i) {
    std::vector<std::span<float>> parts;
    for (std::size_t k = 0; k < 24; ++k) parts.push_back(f.span(i).subspan(k * (n / 24), n / 24));
    kernels::sums_of_squares(gpu, std::span<const std::span<float>>(parts), std::span<const int>(places), sums.span());
  });
  row(gpu, "initialise, normal, bf16", b, [&](int i) {
    kernels::initialise(gpu, Init::normal(0.02f), Random(1, RandomPurpose::initialisation), 0, z.span(i),
                        std::span<std::int16_t>(reinterpret_cast<std::int16_t*>(y.at(i)), n));
  });
}

template <class W, class G>
void adam(Cuda& gpu, const char* name, std::int64_t n, std::int64_t shift) {
  const Rotating<W> w(gpu, n + 8, 1);
  const Rotating<G> g(gpu, n, 11);
  const Rotating<float> m(gpu, n, 21), v(gpu, n, 31, true);
  const Rotating<kept_t<W>> beside(gpu, has_master<W> ? n : 64, 41);
  const std::vector<kernels::UpdateRun> runs{
      {{0, n / 2}, 0.1f}, {{n / 2, n / 2 + 3072}, 0.0f}, {{n / 2 + 3072, n}, 0.1f}};
  const kernels::UpdateStep step{.learning_rate = 1e-4f, .number = 5, .gradient_scale = 0.9f};
  row(gpu, name, static_cast<double>(n) * kernels::detail::update_bytes<W, G, float, 2>, [&](int i) {
    const auto size = static_cast<std::size_t>(n);
    kernels::update(gpu, AdamW{},
                    kernels::UpdateSpan<W, G, float, 2>{
                        .weight = w.span(i).subspan(static_cast<std::size_t>(shift), size),
                        .masters = has_master<W> ? beside.span(i) : std::span<kept_t<W>>{},
                        .gradient = g.span(i),
                        .slots = {m.span(i), v.span(i)}},
                    std::span<const kernels::UpdateRun>(runs), step);
  });
}

/// `first`: index of the first element in its tensor.
void adam_stochastic(Cuda& gpu, const char* name, std::int64_t n, std::int64_t first) {
  const Rotating<bf16> w(gpu, n, 1), g(gpu, n, 11);
  const Rotating<float> m(gpu, n, 21), v(gpu, n, 31, true);
  const std::vector<kernels::UpdateRun> runs{{{0, n / 2}, 0.1f, 1, 1, first},
                                             {{n / 2, n / 2 + 3072}, 0.0f, 1, 2, 0},
                                             {{n / 2 + 3072, n}, 0.1f, 1, 3, first}};
  const kernels::UpdateStep step{.learning_rate = 1e-4f, .number = 5, .gradient_scale = 0.9f};
  row(gpu, name, static_cast<double>(n) * 22, [&](int i) {
    kernels::update_stochastic(
        gpu, AdamW{},
        kernels::UpdateSpan<bf16, bf16, float, 2>{
            .weight = w.span(i), .masters = {}, .gradient = g.span(i), .slots = {m.span(i), v.span(i)}},
        std::span<const kernels::UpdateRun>(runs), step, 7);
  });
}

void norms(Cuda& gpu, std::int64_t n, std::int64_t width) {
  const auto size = n * width;
  const Rotating<bf16> x(gpu, size, 1), y(gpu, size, 11), dy(gpu, size, 21), onto(gpu, size, 31);
  const auto gamma = random_tensor<bf16>(gpu, width), beta = random_tensor<bf16>(gpu, width);
  const auto dgamma = random_tensor<bf16>(gpu, width), dbeta = random_tensor<bf16>(gpu, width);
  const auto mean = random_tensor<float>(gpu, n), rstd = random_tensor<float>(gpu, n);
  const double b = 2.0 * static_cast<double>(size);
  const auto shape = " " + std::to_string(n) + " x " + std::to_string(width);
  row(gpu, "layer norm" + shape, 2 * b, [&](int i) {
    kernels::layer_norm_forward(gpu, x.at(i), gamma.data(), beta.data(), 1e-5f, y.at(i), mean.data(), rstd.data(), n,
                                width);
  });
  row(gpu, "layer norm backward + residual" + shape, 4 * b, [&](int i) {
    kernels::layer_norm_backward(gpu, dy.at(i), x.at(i), gamma.data(), mean.data(), rstd.data(), y.at(i), dgamma.data(),
                                 dbeta.data(), n, width, static_cast<const bf16*>(onto.at(i)));
  });
  row(gpu, "the same, added in place" + shape, 4 * b, [&](int i) {
    kernels::layer_norm_backward(gpu, dy.at(i), x.at(i), gamma.data(), mean.data(), rstd.data(), onto.at(i),
                                 dgamma.data(), dbeta.data(), n, width, static_cast<const bf16*>(onto.at(i)));
  });
  row(gpu, "layer norm backward" + shape, 3 * b, [&](int i) {
    kernels::layer_norm_backward(gpu, dy.at(i), x.at(i), gamma.data(), mean.data(), rstd.data(), y.at(i), dgamma.data(),
                                 dbeta.data(), n, width, static_cast<const bf16*>(nullptr));
  });
  row(gpu, "rms norm" + shape, 2 * b,
      [&](int i) { kernels::rms_norm_forward(gpu, x.at(i), gamma.data(), 1e-5f, y.at(i), rstd.data(), n, width); });
  row(gpu, "rms norm backward + residual" + shape, 4 * b, [&](int i) {
    kernels::rms_norm_backward(gpu, dy.at(i), x.at(i), gamma.data(), rstd.data(), y.at(i), dgamma.data(), n, width,
                               static_cast<const bf16*>(onto.at(i)));
  });
  row(gpu, "column sum" + shape, b, [&](int i) { kernels::column_sum(gpu, x.at(i), dgamma.data(), n, width); });
  row(gpu, "column sum" + (" " + std::to_string(n / 4)) + " x " + std::to_string(width * 4), b,
      [&](int i) { kernels::column_sum(gpu, x.at(i), beta.data(), n / 4, width * 4); });
}

void embeddings(Cuda& gpu, std::int64_t n, std::int64_t width) {
  constexpr std::int64_t vocabulary = 50304, sequence = 1024;
  const auto size = n * width;
  const Rotating<bf16> y(gpu, size, 1);
  const auto table = random_tensor<bf16>(gpu, vocabulary * width), places = random_tensor<bf16>(gpu, sequence * width);
  const auto dplaces = random_tensor<bf16>(gpu, sequence * width);
  const Random random(7, RandomPurpose::test);
  for (const bool often : {true, false}) {
    std::vector<std::int32_t> host(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < host.size(); ++i) {
      const double u = static_cast<double>(random.uniform(i));  // often: one token is 6 % of all, as in texts
      host[i] = static_cast<std::int32_t>((often ? u * u * u * u : u) * 50257);
    }
    const Tensor<std::int32_t, 1> tokens(gpu.pool(), {n});
    gpu.upload(tokens.data(), host.data(), host.size() * 4);
    const std::span<const std::int32_t> all(tokens.span());
    const auto shape =
        " " + std::to_string(n) + " x " + std::to_string(width) + (often ? ", as in texts" : ", uniform");
    const double b = 2.0 * static_cast<double>(size);
    if (often)
      row(gpu, "check tokens " + std::to_string(n), 4.0 * static_cast<double>(n),
          [&](int) { kernels::check_tokens(gpu, all, 50257); });
    row(gpu, "embedding" + shape, 3 * b, [&](int i) {
      kernels::embedding_forward(gpu, all, table.data(), 50257, places.data(), sequence, y.at(i), width);
    });
    row(gpu, "embedding backward, bf16" + shape, 4 * b,
        [&](int i) { kernels::embedding_backward(gpu, all, y.at(i), table.data(), dplaces.data(), sequence, width); });
    const auto sums = random_tensor<float>(gpu, vocabulary * width),
               place_sums = random_tensor<float>(gpu, sequence * width);
    row(gpu, "embedding backward, float" + shape, 6 * b,
        [&](int i) { kernels::embedding_backward(gpu, all, y.at(i), sums.data(), place_sums.data(), sequence, width); });
  }
  row(gpu, "add rows " + std::to_string(n) + " x " + std::to_string(width), 4.0 * static_cast<double>(size),
      [&](int i) { kernels::add_rows(gpu, places.data(), sequence, y.at(i), n, width); });
}

}  // namespace

int main() {
  if (cuda_devices() == 0) {
    std::puts("this machine has no GPU");
    return 77;
  }
  Cuda gpu;
  std::printf("%s, %d multiprocessors; median of %d\n", gpu.properties().name.c_str(), gpu.properties().multiprocessors,
              samples);
  std::printf("%-44s %12s %12s %13s %8s\n", "", "bytes", "time", "bandwidth", "of copy");
  elementwise(gpu);
  norms(gpu, 65536, 768);
  norms(gpu, 16384, 1600);
  adam<bf16, bf16>(gpu, "adam bf16, gradients bf16, 40M", 40'000'000, 0);
  adam<bf16, float>(gpu, "adam bf16, gradients float, 40M", 40'000'000, 0);
  adam<f16, float>(gpu, "adam f16, gradients float, 40M", 40'000'000, 0);
  adam<float, float>(gpu, "adam float, 40M", 40'000'000, 0);
  adam_stochastic(gpu, "adam bf16 without masters, 40M", 40'000'000, 0);
  adam_stochastic(gpu, "the same, cut at an odd element", 40'000'000, 12345);
  adam<bf16, bf16>(gpu, "adam bf16, a block of 7M", 7'087'872, 0);
  adam<bf16, bf16>(gpu, "adam bf16, weights not aligned, 40M", 40'000'000, 1);
  embeddings(gpu, 65536, 768);
  embeddings(gpu, 16384, 1600);
}
