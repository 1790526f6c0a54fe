// SPDX-License-Identifier: Apache-2.0
// kernels/elementwise.hpp on a GPU. A thread moves 16 bytes of the widest type at a time, two or four of them before it
// computes; pointers that are not aligned for that are served element by element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/math.hpp>
#include <zeropp/kernels/cuda/vector.hpp>
#include <zeropp/kernels/positions.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

inline constexpr int map_threads = 256;

/// A thread's loads of one input: U vectors, each `map_threads` vectors after the last.
template <class T, int N, int U>
struct Loaded {
  Lanes<T, N> at[U];
  __device__ __forceinline__ explicit Loaded(const T* from) {
#pragma unroll
    for (int u = 0; u < U; ++u) at[u] = Lanes<T, N>::load(from + u * map_threads * N);
  }
};

template <class T>
__device__ __forceinline__ compute_t<T> element(const T* from) {
  return static_cast<compute_t<T>>(*from);
}

/// out[i] = f(in[i]...) in the compute type. Every thread reads all its elements before it writes: out may be an input.
template <int N, int U, class F, class Out, class... In>
__global__ void __launch_bounds__(map_threads, 5) map_kernel(std::int64_t n, F f, Out* out, const In*... in) {
  constexpr std::int64_t step = map_threads * N, tile = step * U;
  const std::int64_t begin = blockIdx.x * tile + threadIdx.x * N;
  if ((blockIdx.x + 1) * tile <= n) {
    [&](const Loaded<In, N, U>&... x) {
#pragma unroll
      for (int u = 0; u < U; ++u) {
        compute_t<Out> y[N];
#pragma unroll
        for (int k = 0; k < N; ++k) y[k] = f(x.at[u][k]...);
        Lanes<Out, N>::of(y).store(out + begin + u * step);
      }
    }(Loaded<In, N, U>(in + begin)...);
    return;
  }
  for (std::int64_t i = blockIdx.x * tile + threadIdx.x; i < n; i += map_threads)
    out[i] = rounded<Out>(f(element(in + i)...));
}

template <int N, class F, class Out, class... In>
void launch_map(cudaStream_t stream, std::int64_t n, F f, Out* out, const In*... in) {
  constexpr int unroll = N == 1 ? 8 : sizeof...(In) > 1 ? 2 : 4;
  const auto blocks = static_cast<unsigned>(ceil_div(n, std::int64_t{map_threads} * N * unroll));
  map_kernel<N, unroll><<<blocks, map_threads, 0, stream>>>(n, f, out, in...);
}

template <CudaDevice D, class F, class Out, class... In>
void map_on_gpu(D& device, std::string_view name, double flops, F f, std::span<Out> out, std::span<In>... in) {
  const auto n = static_cast<std::int64_t>(out.size());
  if (n == 0) return;
  const Cost cost{.name = name,
                  .flops = flops * static_cast<double>(n),
                  .bytes = static_cast<double>(n) * static_cast<double>(sizeof(Out) + (sizeof(In) + ... + 0))};
  device.run(cost, [&](cudaStream_t stream) {
    constexpr int lanes = vector_lanes<Out, In...>;
    if (aligned_for<lanes>(out.data(), in.data()...))
      launch_map<lanes>(stream, n, f, out.data(), static_cast<const std::remove_cv_t<In>*>(in.data())...);
    else
      launch_map<1>(stream, n, f, out.data(), static_cast<const std::remove_cv_t<In>*>(in.data())...);
  });
}

template <class C>
struct Sum {
  __device__ C operator()(C x, C y) const { return x + y; }
};
template <class C>
struct Product {
  C factor;
  __device__ C operator()(C x) const { return x * factor; }
};
template <class C>
struct Constant {
  C value;
  __device__ C operator()() const { return value; }
};
template <class From, class To>
struct Conversion {
  __device__ To operator()(From x) const { return static_cast<To>(x); }
};
template <class C>
struct Gelu {
  __device__ C operator()(C x) const { return gelu(x); }
};
template <class C>
struct GeluBackward {
  __device__ C operator()(C x, C dy) const { return dy * gelu_slope(x); }
};
template <class C>
struct Swiglu {
  __device__ C operator()(C gate, C up) const { return gate * logistic(gate) * up; }
};

/// Both gradients of SwiGLU in one pass.
template <int N, class T>
__global__ void __launch_bounds__(map_threads)
    swiglu_backward_kernel(std::int64_t n, const T* gate, const T* up, const T* dy, T* dgate, T* dup) {
  const std::int64_t at = (blockIdx.x * std::int64_t{map_threads} + threadIdx.x) * N;
  const auto both = [](auto g, auto u, auto d, auto& dg, auto& du) {
    const auto s = logistic(g);
    dg = d * u * s * (1 + g * (1 - s));
    du = d * g * s;
  };
  if (at + N <= n) {
    const auto g = Lanes<T, N>::load(gate + at), u = Lanes<T, N>::load(up + at), d = Lanes<T, N>::load(dy + at);
    compute_t<T> dg[N], du[N];
#pragma unroll
    for (int k = 0; k < N; ++k) both(g[k], u[k], d[k], dg[k], du[k]);
    Lanes<T, N>::of(dg).store(dgate + at);
    Lanes<T, N>::of(du).store(dup + at);
    return;
  }
  for (std::int64_t i = at; i < n; ++i) {
    compute_t<T> dg, du;
    both(element(gate + i), element(up + i), element(dy + i), dg, du);
    dgate[i] = rounded<T>(dg);
    dup[i] = rounded<T>(du);
  }
}

/// A thread takes 8 elements whose numbers begin at a multiple of 4: two blocks of the counter. Where `vector`, they
/// are all of one access.
template <class T>
__global__ void __launch_bounds__(map_threads)
    dropout_kernel(std::int64_t n, const T* x, T* y, compute_t<T> keep, std::uint32_t threshold, Random random,
                   std::int64_t first, bool vector) {
  constexpr int N = 8;
  using C = compute_t<T>;
  const std::int64_t lead = first % 4;  // numbers of the first block that lie before x
  const std::int64_t at = (blockIdx.x * std::int64_t{map_threads} + threadIdx.x) * N - lead;
  if (at >= n) return;
  const auto drop = [&](std::uint32_t bits, C v) { return bits >> 8 >= threshold ? v * keep : C{0}; };
  const auto block = static_cast<std::uint64_t>(first + at) / 4;
  if (vector && at + N <= n) {  // then lead is 0
    const auto in = Lanes<T, N>::load(x + at);
    C out[N];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto bits = random.block(block + static_cast<std::uint64_t>(half));
#pragma unroll
      for (int k = 0; k < 4; ++k) out[4 * half + k] = drop(bits[static_cast<std::size_t>(k)], in[4 * half + k]);
    }
    Lanes<T, N>::of(out).store(y + at);
    return;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto bits = random.block(block + static_cast<std::uint64_t>(half));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::int64_t i = at + 4 * half + k;
      if (i >= 0 && i < n) y[i] = rounded<T>(drop(bits[static_cast<std::size_t>(k)], element(x + i)));
    }
  }
}

}  // namespace detail

template <CudaDevice D, class T>
void add(D& device, std::span<T> a, std::span<T> b, std::span<T> out) {
  detail::map_on_gpu(device, "add", 1, detail::Sum<compute_t<T>>{}, out, a, b);
}

template <CudaDevice D, class T>
void scale(D& device, std::span<T> x, compute_t<T> factor) {
  detail::map_on_gpu(device, "scale", 1, detail::Product<compute_t<T>>{factor}, x, x);
}

template <CudaDevice D, class T>
void fill(D& device, std::span<T> x, T value) {
  detail::map_on_gpu(device, "fill", 0, detail::Constant<compute_t<T>>{static_cast<compute_t<T>>(value)}, x);
}

template <CudaDevice D, class A, class B>
void convert(D& device, std::span<A> in, std::span<B> out) {
  detail::map_on_gpu(device, "convert", 0, detail::Conversion<compute_t<A>, compute_t<B>>{}, out, in);
}

template <CudaDevice D, class T>
void copy(D& device, std::span<const T> from, std::span<T> to) {
  if (from.empty()) return;
  device.run({.name = "copy", .bytes = 2.0 * static_cast<double>(from.size_bytes())}, [&](cudaStream_t stream) {
    cuda_check(cudaMemcpyAsync(to.data(), from.data(), from.size_bytes(), cudaMemcpyDeviceToDevice, stream),
               "copying on the GPU");
  });
}

template <CudaDevice D, class T>
void gelu_forward(D& device, std::span<T> x, std::span<T> y) {
  detail::map_on_gpu(device, "gelu", 12, detail::Gelu<compute_t<T>>{}, y, x);
}

template <CudaDevice D, class T>
void gelu_backward(D& device, std::span<T> x, std::span<T> dy, std::span<T> dx) {
  detail::map_on_gpu(device, "gelu backward", 20, detail::GeluBackward<compute_t<T>>{}, dx, x, dy);
}

template <CudaDevice D, class T>
void swiglu_forward(D& device, std::span<T> gate, std::span<T> up, std::span<T> y) {
  detail::map_on_gpu(device, "swiglu", 6, detail::Swiglu<compute_t<T>>{}, y, gate, up);
}

template <CudaDevice D, class T>
void swiglu_backward(D& device, std::span<T> gate, std::span<T> up, std::span<T> dy, std::span<T> dgate,
                     std::span<T> dup) {
  const auto n = static_cast<std::int64_t>(gate.size());
  if (n == 0) return;
  const auto count = static_cast<double>(n);
  device.run({.name = "swiglu backward", .flops = 16 * count, .bytes = 5 * count * sizeof(T)},
             [&](cudaStream_t stream) {
               const auto launch = [&]<int N>(std::integral_constant<int, N>) {
                 const auto blocks = static_cast<unsigned>(ceil_div(n, std::int64_t{detail::map_threads} * N));
                 detail::swiglu_backward_kernel<N, std::remove_cv_t<T>><<<blocks, detail::map_threads, 0, stream>>>(
                     n, gate.data(), up.data(), dy.data(), dgate.data(), dup.data());
               };
               constexpr int lanes = detail::vector_lanes<T>;
               if (detail::aligned_for<lanes>(gate.data(), up.data(), dy.data(), dgate.data(), dup.data()))
                 launch(std::integral_constant<int, lanes>{});
               else
                 launch(std::integral_constant<int, 1>{});
             });
}

template <CudaDevice D, class T>
void dropout(D& device, std::span<T> x, std::span<T> y, float p, const Random& random, const ElementNumbers& numbers) {
  const auto n = static_cast<std::int64_t>(x.size());
  if (n == 0) return;
  const auto keep = static_cast<compute_t<T>>(1 / (1 - static_cast<double>(p)));
  const auto threshold = static_cast<std::uint32_t>(static_cast<double>(p) * 0x1p24);
  device.run({.name = "dropout", .bytes = 2.0 * static_cast<double>(x.size_bytes())}, [&](cudaStream_t stream) {
    for (std::int64_t i = 0; i < n;) {  // whole sequences are one run
      const auto run = numbers.run(i);
      const auto count = std::min(run.count, n - i), first = run.begin;
      const bool vector = first % 4 == 0 && detail::aligned_for<8>(x.data() + i, y.data() + i);
      const auto blocks = static_cast<unsigned>(ceil_div(count + first % 4, std::int64_t{detail::map_threads} * 8));
      detail::dropout_kernel<std::remove_cv_t<T>><<<blocks, detail::map_threads, 0, stream>>>(
          count, x.data() + i, y.data() + i, keep, threshold, random, first, vector);
      i += count;
    }
  });
}

}  // namespace zeropp::kernels
#endif
