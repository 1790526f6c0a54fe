// SPDX-License-Identifier: Apache-2.0
// kernels/adam.hpp on a GPU: clipping, AdamW, masters and the weights of 16 bits in one pass over memory. Every
// rounding is spelled out (which sums are fused into one is not left to compilers), so an element's bits depend neither
// on where it lies nor on how a buffer is cut. They are the CPU's up to the CPU compiler's choice of fused operations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/adam.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

inline constexpr int adam_threads = 256, adam_unroll = 2;

/// Runs of one launch, in order, not overlapping: elements [begin, end) with their factor of decay.
template <class C>
struct AdamRuns {
  static constexpr int most = 64;
  int count = 0;
  std::int64_t begin[most], end[most];
  C decay[most];
};

// Each rounded once.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ double minus(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float over(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ double over(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ float root_of(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ double root_of(double a) { return __dsqrt_rn(a); }

template <class C>
__device__ __forceinline__ void adam_element(C& master, C gradient, C& m, C& v, C decay, const AdamFactors<C>& f) {
  const C g = times(gradient, f.scale);
  m = fused(minus(g, m), f.one_minus_beta1, m);
  v = fused(times(g, g), f.one_minus_beta2, times(v, f.beta2));
  master = fused(master, decay, -over(times(f.step, m), fused(root_of(v), f.root, f.epsilon)));
}

/// The first of `count` runs in order that ends after i; `count` if none does.
template <class End>
__device__ __forceinline__ int run_after(std::int64_t i, int count, End end) {
  int from = 0, to = count;
  while (from < to) {
    const int middle = (from + to) / 2;
    if (end(middle) <= i)
      from = middle + 1;
    else
      to = middle;
  }
  return from;
}

/// A thread takes `adam_unroll` groups of N elements that begin at multiples of N; elements of no run stay as they are.
/// `kept` is what lies beside weights with masters, otherwise null. The buffers have `n` elements, the launch begins at
/// `first`.
template <int N, class W, class G, class C>
__global__ void __launch_bounds__(adam_threads)
    adam_kernel(W* w, kept_t<W>* kept, const G* g, C* m, C* v, std::int64_t n, std::int64_t first,
                const __grid_constant__ AdamRuns<C> runs, const __grid_constant__ AdamFactors<C> given,
                const GradientNorm* clip) {
  AdamFactors<C> f = given;
  if (!f.take(clip)) return;
  using Master = master_of_t<W>;
  using Kept = kept_t<W>;
  constexpr bool split = has_master<W>;
  constexpr std::int64_t step = adam_threads * N;
  const std::int64_t begin = first + blockIdx.x * step * adam_unroll + threadIdx.x * N;
  const auto update = [&](std::int64_t i, int& run, C& master, C gradient, C& m_i, C& v_i) {
    while (run < runs.count && i >= runs.end[run]) ++run;
    if (run < runs.count && i >= runs.begin[run]) adam_element(master, gradient, m_i, v_i, runs.decay[run], f);
  };
  const auto run_of = [&](std::int64_t i) { return run_after(i, runs.count, [&](int run) { return runs.end[run]; }); };
  if (begin + (adam_unroll - 1) * step + N <= n) {
    Lanes<W, N> w_in[adam_unroll];
    Lanes<Kept, N> kept_in[adam_unroll];
    Lanes<G, N> g_in[adam_unroll];
    Lanes<C, N> m_in[adam_unroll], v_in[adam_unroll];
#pragma unroll
    for (int u = 0; u < adam_unroll; ++u) {
      const std::int64_t at = begin + u * step;
      g_in[u] = Lanes<G, N>::load(g + at);
      m_in[u] = Lanes<C, N>::load(m + at);
      v_in[u] = Lanes<C, N>::load(v + at);
      w_in[u] = Lanes<W, N>::load(w + at);
      if constexpr (split) kept_in[u] = Lanes<Kept, N>::load(kept + at);
    }
#pragma unroll
    for (int u = 0; u < adam_unroll; ++u) {
      const std::int64_t at = begin + u * step;
      int run = run_of(at);
      C m_out[N], v_out[N];
      compute_t<W> w_out[N];
      Kept kept_out[N];
      Lanes<W, N> halves;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        C master;
        if constexpr (split) {
          master = Master{reinterpret_cast<const W*>(w_in[u].word)[k], kept_in[u][k]}.master();
        } else {
          master = w_in[u][k];
        }
        m_out[k] = m_in[u][k];
        v_out[k] = v_in[u][k];
        update(at + k, run, master, static_cast<C>(g_in[u][k]), m_out[k], v_out[k]);
        if constexpr (split) {
          const auto [weight, beside] = Master::from(master);
          reinterpret_cast<W*>(halves.word)[k] = weight;
          kept_out[k] = beside;
        } else {
          w_out[k] = master;
        }
      }
      if constexpr (split) {
        halves.store(w + at);
        Lanes<Kept, N>::of(kept_out).store(kept + at);
      } else {
        Lanes<W, N>::of(w_out).store(w + at);
      }
      Lanes<C, N>::of(m_out).store(m + at);
      Lanes<C, N>::of(v_out).store(v + at);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < adam_unroll * N; ++i) {
    const std::int64_t at = begin + i / N * step + i % N;
    if (at >= n) continue;
    int run = run_of(at);
    C master;
    if constexpr (split) {
      master = Master{w[at], kept[at]}.master();
    } else {
      master = w[at];
    }
    update(at, run, master, static_cast<C>(static_cast<compute_t<G>>(g[at])), m[at], v[at]);
    if constexpr (split) {
      const auto [weight, beside] = Master::from(master);
      w[at] = weight, kept[at] = beside;
    } else {
      w[at] = master;
    }
  }
}

}  // namespace detail

/// One step over the elements of `runs` [begin, end) of the buffers, in order and not overlapping, each with its own
/// decay: one launch for up to 64 runs.
template <CudaDevice D, class W, class G, class M>
void adam(D& device, const AdamSpan<W, G, M>& s, std::span<const AdamRun> runs, AdamStep step) {
  static_assert(!has_master<W> || std::is_same_v<M, float>, "weights of 16 bits have float masters and moments");
  std::int64_t elements = 0;
  for (const auto& run : runs) elements += run.range.size();
  if (elements == 0) return;
  const auto n = static_cast<std::int64_t>(s.weight.size());
  const Cost cost{.name = "adam",
                  .flops = 16.0 * static_cast<double>(elements),
                  .bytes = static_cast<double>(elements) * detail::adam_bytes<W, G, M>};
  device.run(cost, [&](cudaStream_t stream) {
    const detail::AdamFactors<M> factors(step);
    using Runs = detail::AdamRuns<M>;
    for (std::size_t i = 0; i < runs.size(); i += Runs::most) {
      Runs some{};
      some.count = static_cast<int>(std::min<std::size_t>(Runs::most, runs.size() - i));
      for (int k = 0; k < some.count; ++k) {
        const auto& run = runs[i + static_cast<std::size_t>(k)];
        some.begin[k] = run.range.begin;
        some.end[k] = run.range.end;
        some.decay[k] =
            static_cast<M>(1 - static_cast<double>(step.learning_rate) * static_cast<double>(run.weight_decay));
      }
      constexpr int lanes = 4;
      const auto launch = [&]<int N>(std::integral_constant<int, N>) {
        const auto first = some.begin[0] / N * N, end = some.end[some.count - 1];
        if (end <= first) return;
        const auto blocks =
            static_cast<unsigned>(ceil_div(end - first, std::int64_t{detail::adam_threads} * N * detail::adam_unroll));
        detail::adam_kernel<N><<<blocks, detail::adam_threads, 0, stream>>>(
            s.weight.data(), s.masters.data(), s.gradient.data(), s.first.data(), s.second.data(), n, first, some,
            factors, step.clip);
      };
      if (detail::aligned_for<lanes>(s.weight.data(), s.masters.data(), s.gradient.data(), s.first.data(),
                                     s.second.data()))
        launch(std::integral_constant<int, lanes>{});
      else
        launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace zeropp::kernels
#endif
