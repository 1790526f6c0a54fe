// SPDX-License-Identifier: Apache-2.0
// kernels/update.hpp on a GPU: clipping, an optimizer's rule, masters and the weights of 16 bits in one pass over
// memory. Every rounding is spelled out (kernels/arithmetic.hpp), so an element's bits depend neither on where it lies
// nor on how a buffer is cut. They are the CPU's up to the CPU compiler's choice of fused operations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/kernels/cuda/vector.hpp>
#include <zeropp/kernels/update.hpp>

#ifdef __CUDACC__
namespace zeropp::kernels {

namespace detail {

inline constexpr int update_threads = 256, update_unroll = 2;

/// Runs of one launch, in order, not overlapping: elements [begin, end), each with its step.
template <class C>
struct UpdateRuns {
  static constexpr int most = 64;
  int count = 0;
  std::int64_t begin[most], end[most];
  ElementStep<C> step[most];
};

/// The slots of a kernel.
template <class C, int S>
struct SlotPointers {
  C* of[S];
};
template <class C, std::size_t S>
SlotPointers<C, static_cast<int>(S)> slot_pointers(const std::array<std::span<C>, S>& slots) {
  SlotPointers<C, static_cast<int>(S)> pointers;
  for (std::size_t s = 0; s < S; ++s) pointers.of[s] = slots[s].data();
  return pointers;
}

/// A rule's step of one element.
template <class U, class C, int S>
__device__ __forceinline__ void update_element(const U& update, C& master, C gradient, C (&slots)[S], C scale,
                                               const ElementStep<C>& step) {
  Rounded<C> weight = master;
  [&]<int... I>(std::integer_sequence<int, I...>) {
    Rounded<C> state[S]{slots[I]...};
    update(weight, Rounded<C>(gradient) * scale, state[I]..., step);
    ((slots[I] = state[I].value), ...);
  }(std::make_integer_sequence<int, S>{});
  master = weight.value;
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

/// A thread takes `update_unroll` groups of N elements that begin at multiples of N; elements of no run stay as they
/// are. `kept` is what lies beside weights with masters, otherwise null. The buffers have `n` elements, the launch
/// begins at `first`.
template <int N, class U, class W, class G, class C, int S>
__global__ void __launch_bounds__(update_threads)
    update_kernel(W* w, kept_t<W>* kept, const G* g, const SlotPointers<C, S> slots, std::int64_t n, std::int64_t first,
                  const __grid_constant__ UpdateRuns<C> runs, const __grid_constant__ U of_step,
                  const GradientScale<C> given, const GradientNorm* clip) {
  GradientScale<C> gradient = given;
  if (!gradient.take(clip)) return;
  using Master = master_of_t<W>;
  using Kept = kept_t<W>;
  constexpr bool split = has_master<W>;
  constexpr std::int64_t step = update_threads * N;
  const std::int64_t begin = first + blockIdx.x * step * update_unroll + threadIdx.x * N;
  const auto update = [&](std::int64_t i, int& run, C& master, C of_i, C(&state)[S]) {
    while (run < runs.count && i >= runs.end[run]) ++run;
    if (run < runs.count && i >= runs.begin[run])
      update_element(of_step, master, of_i, state, gradient.scale, runs.step[run]);
  };
  const auto run_of = [&](std::int64_t i) { return run_after(i, runs.count, [&](int run) { return runs.end[run]; }); };
  if (begin + (update_unroll - 1) * step + N <= n) {
    Lanes<W, N> w_in[update_unroll];
    Lanes<Kept, N> kept_in[update_unroll];
    Lanes<G, N> g_in[update_unroll];
    Lanes<C, N> s_in[update_unroll][S];
#pragma unroll
    for (int u = 0; u < update_unroll; ++u) {
      const std::int64_t at = begin + u * step;
      g_in[u] = Lanes<G, N>::load(g + at);
#pragma unroll
      for (int s = 0; s < S; ++s) s_in[u][s] = Lanes<C, N>::load(slots.of[s] + at);
      w_in[u] = Lanes<W, N>::load(w + at);
      if constexpr (split) kept_in[u] = Lanes<Kept, N>::load(kept + at);
    }
#pragma unroll
    for (int u = 0; u < update_unroll; ++u) {
      const std::int64_t at = begin + u * step;
      int run = run_of(at);
      C s_out[S][N];
      compute_t<W> w_out[N];
      Kept kept_out[N];
      Lanes<W, N> halves;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        C master, state[S];
        if constexpr (split) {
          master = Master{reinterpret_cast<const W*>(w_in[u].word)[k], kept_in[u][k]}.master();
        } else {
          master = w_in[u][k];
        }
#pragma unroll
        for (int s = 0; s < S; ++s) state[s] = s_in[u][s][k];
        update(at + k, run, master, static_cast<C>(g_in[u][k]), state);
#pragma unroll
        for (int s = 0; s < S; ++s) s_out[s][k] = state[s];
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
#pragma unroll
      for (int s = 0; s < S; ++s) Lanes<C, N>::of(s_out[s]).store(slots.of[s] + at);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < update_unroll * N; ++i) {
    const std::int64_t at = begin + i / N * step + i % N;
    if (at >= n) continue;
    int run = run_of(at);
    C master, state[S];
    if constexpr (split) {
      master = Master{w[at], kept[at]}.master();
    } else {
      master = w[at];
    }
#pragma unroll
    for (int s = 0; s < S; ++s) state[s] = slots.of[s][at];
    update(at, run, master, static_cast<C>(static_cast<compute_t<G>>(g[at])), state);
#pragma unroll
    for (int s = 0; s < S; ++s) slots.of[s][at] = state[s];
    if constexpr (split) {
      const auto [weight, beside] = Master::from(master);
      w[at] = weight, kept[at] = beside;
    } else {
      w[at] = master;
    }
  }
}

template <int N, class W, class G, class M, std::size_t S>
bool aligned_for_update(const UpdateSpan<W, G, M, S>& s) {
  return aligned_for<N>(s.weight.data(), s.masters.data(), s.gradient.data()) &&
         std::all_of(s.slots.begin(), s.slots.end(), [](auto slot) { return aligned_for<N>(slot.data()); });
}

/// Blocks of a launch over elements [first, end).
template <int N>
unsigned update_blocks_of(std::int64_t first, std::int64_t end) {
  return static_cast<unsigned>(ceil_div(end - first, std::int64_t{update_threads} * N * update_unroll));
}

}  // namespace detail

/// One step over the elements of `runs` [begin, end) of the buffers, in order and not overlapping, each with its own
/// decay and rate: one launch for up to 64 runs.
template <UpdateRule R, CudaDevice D, class W, class G, class M>
void update(D& device, const R& rule, const UpdateSpan<W, G, M, slot_count<R>>& s, std::span<const UpdateRun> runs,
            const UpdateStep& step) {
  static_assert(!has_master<W> || std::is_same_v<M, float>, "weights of 16 bits have float masters and slots");
  std::int64_t elements = 0;
  for (const auto& run : runs) elements += run.range.size();
  if (elements == 0) return;
  const auto n = static_cast<std::int64_t>(s.weight.size());
  const Cost cost{.name = R::name,
                  .flops = update_flops<R>() * static_cast<double>(elements),
                  .bytes = static_cast<double>(elements) * detail::update_bytes<W, G, M, slot_count<R>>};
  device.run(cost, [&](cudaStream_t stream) {
    const auto of_step = detail::of_step<M>(rule, step);
    using Runs = detail::UpdateRuns<M>;
    for (std::size_t i = 0; i < runs.size(); i += Runs::most) {
      Runs some{};
      some.count = static_cast<int>(std::min<std::size_t>(Runs::most, runs.size() - i));
      for (int k = 0; k < some.count; ++k) {
        const auto& run = runs[i + static_cast<std::size_t>(k)];
        some.begin[k] = run.range.begin;
        some.end[k] = run.range.end;
        some.step[k] = detail::element_step<M>(step, run);
      }
      constexpr int lanes = 4;
      const auto launch = [&]<int N>(std::integral_constant<int, N>) {
        const auto first = some.begin[0] / N * N, end = some.end[some.count - 1];
        if (end <= first) return;
        detail::update_kernel<N><<<detail::update_blocks_of<N>(first, end), detail::update_threads, 0, stream>>>(
            s.weight.data(), s.masters.data(), s.gradient.data(), detail::slot_pointers(s.slots), n, first, some,
            of_step, detail::GradientScale<M>(step), step.clip);
      };
      if (detail::aligned_for_update<lanes>(s))
        launch(std::integral_constant<int, lanes>{});
      else
        launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace zeropp::kernels
#endif
