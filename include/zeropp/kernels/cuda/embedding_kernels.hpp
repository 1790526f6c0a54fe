// SPDX-License-Identifier: Apache-2.0
// Kernels of embeddings: rows of a table or of positions added, and the rows of gradients of equal tokens summed.
#pragma once

#include <cstdint>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/kernels/cuda/vector.hpp>
#include <zeropp/kernels/positions.hpp>

namespace zeropp::kernels::detail {

inline constexpr int row_threads = 256, token_part = 32;

#ifdef __CUDACC__

/// One block: the first bad token is found without atomics in host memory. 65536 tokens take a few µs.
static __global__ void __launch_bounds__(1024)
    check_tokens_kernel(const std::int32_t* tokens, std::int64_t n, std::int64_t vocabulary, CudaFaults* faults) {
  __shared__ long long found;
  constexpr long long none = 0x7fffffffffffffff;
  if (threadIdx.x == 0) found = none;
  __syncthreads();
  long long mine = none;
#pragma unroll 16
  for (std::int64_t i = threadIdx.x; i < n; i += 1024) {
    const std::int32_t token = tokens[i];
    if ((token < 0 || token >= vocabulary) && i < mine) mine = i;
  }
  if (mine != none) atomicMin(&found, mine);
  __syncthreads();
  if (threadIdx.x || found == none || faults->kind != CudaFaults::none) return;
  faults->value = tokens[found];
  faults->place = found;
  faults->limit = vocabulary;
  __threadfence_system();
  faults->kind = CudaFaults::token;
}

/// Rows of a table by token; none for tokens that are not held.
template <class T>
struct TokenRows {
  using Element = T;
  const std::int32_t* tokens;
  const T* rows;
  Range held;
  std::int64_t width;
  __device__ const T* operator()(std::int64_t i) const {
    const std::int64_t token = tokens[i];
    return token >= held.begin && token < held.end ? rows + (token - held.begin) * width : nullptr;
  }
};

/// Row i is row places[i mod period]; none where `rows` is null.
template <class T>
struct PeriodicRows {
  using Element = T;
  const T* rows;
  std::int64_t period, width;
  Positions places = {};
  __device__ const T* operator()(std::int64_t i) const { return rows ? rows + places[i % period] * width : nullptr; }
};

/// y[i] = a(i) + b(i), one warp a row, four vectors of it at a time. y may be where a's rows are.
template <int N, class A, class B, class Y>
__global__ void __launch_bounds__(row_threads) sum_rows_kernel(A a, B b, Y* y, std::int64_t n, std::int64_t width) {
  using C = std::common_type_t<compute_t<typename A::Element>, compute_t<typename B::Element>>;
  constexpr int U = 4;
  const std::int64_t row = blockIdx.x * std::int64_t{row_threads / 32} + threadIdx.x / 32;
  if (row >= n) return;
  const auto* left = a(row);
  const auto* right = b(row);
  Y* to = y + row * width;
  for (std::int64_t begin = threadIdx.x % 32 * N; begin < width; begin += 32 * N * U) {
    Lanes<typename A::Element, N> l[U];
    Lanes<typename B::Element, N> r[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const std::int64_t at = begin + u * 32 * N;
      if (left && at < width) l[u] = Lanes<typename A::Element, N>::load(left + at);
      if (right && at < width) r[u] = Lanes<typename B::Element, N>::load(right + at);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const std::int64_t at = begin + u * 32 * N;
      if (at >= width) continue;
      compute_t<Y> sum[N];
#pragma unroll
      for (int k = 0; k < N; ++k)
        sum[k] = static_cast<compute_t<Y>>((left ? static_cast<C>(l[u][k]) : C{0}) +
                                           (right ? static_cast<C>(r[u][k]) : C{0}));
      Lanes<Y, N>::of(sum).store(to + at);
    }
  }
}

/// The numbers 0 ... n - 1, and whether a fault is noted: then nothing is added, the step will be thrown away.
static __global__ void __launch_bounds__(row_threads)
    places_kernel(std::uint32_t* places, std::uint32_t* refused, std::int64_t n, const CudaFaults* faults) {
  const std::int64_t i = blockIdx.x * std::int64_t{row_threads} + threadIdx.x;
  if (i < n) places[i] = static_cast<std::uint32_t>(i);
  if (i == 0) *refused = faults->kind != CudaFaults::none;
}

/// Sorted tokens, and the place of each in the batch. `partials` is [parts][2][width]: the sum of a part's first token
/// where that began before the part, and of its last where that goes on after it.
template <class Y, class G, class C>
struct SortedRows {
  const std::uint32_t *tokens, *order, *refused;
  const Y* dy;
  G* dtable;
  C* partials;
  Range held;
  std::int64_t n, width;

  __device__ bool holds(std::uint32_t token) const {
    return token < 0x80000000u && token >= held.begin && token < held.end;
  }
  template <int N>
  __device__ void add(std::uint32_t token, std::int64_t column, const C (&sum)[N]) const {
    G* to = dtable + (token - held.begin) * width + column;
    const auto before = Lanes<G, N>::load(to);
    compute_t<G> after[N];
#pragma unroll
    for (int k = 0; k < N; ++k) after[k] = before[k] + static_cast<compute_t<G>>(sum[k]);
    Lanes<G, N>::of(after).store(to);
  }
};

/// Block (part, columns): what a token has in one part only goes to the table at once.
template <int N, class Y, class G, class C>
__global__ void __launch_bounds__(256) token_parts_kernel(SortedRows<Y, G, C> a) {
  constexpr int U = 8;
  __shared__ std::uint32_t tokens[token_part], order[token_part];
  const std::int64_t first = blockIdx.x * std::int64_t{token_part};
  const int count = static_cast<int>(a.n - first < token_part ? a.n - first : token_part);
  if (static_cast<int>(threadIdx.x) < count) {
    tokens[threadIdx.x] = a.tokens[first + threadIdx.x];
    order[threadIdx.x] = a.order[first + threadIdx.x];
  }
  __syncthreads();
  const std::int64_t column = (blockIdx.y * blockDim.x + threadIdx.x) * std::int64_t{N};
  if (column >= a.width || *a.refused) return;
  const bool begun = first > 0 && a.tokens[first - 1] == tokens[0];
  const bool goes_on = first + count < a.n && a.tokens[first + count] == tokens[count - 1];
  C* partials = a.partials + blockIdx.x * 2 * a.width + column;
  C sum[N] = {};
  for (int begin = 0; begin < count; begin += U) {
    Lanes<Y, N> rows[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (begin + u < count && a.holds(tokens[begin + u]))
        rows[u] = Lanes<Y, N>::load(a.dy + order[begin + u] * a.width + column);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int i = begin + u;
      if (i >= count || !a.holds(tokens[i])) continue;
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += static_cast<C>(rows[u][k]);
      if (i + 1 < count && tokens[i + 1] == tokens[i]) continue;
      if (begun && tokens[i] == tokens[0])
        Lanes<C, N>::of(sum).store(partials);
      else if (goes_on && i + 1 == count)
        Lanes<C, N>::of(sum).store(partials + a.width);
      else
        a.add(tokens[i], column, sum);
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] = 0;
    }
  }
}

/// Block (part, columns): the token that goes on after this part, if it began here, gets the sums of all its parts.
template <int N, class Y, class G, class C>
__global__ void __launch_bounds__(256) join_parts_kernel(SortedRows<Y, G, C> a) {
  const std::int64_t first = blockIdx.x * std::int64_t{token_part}, end = first + token_part;
  if (end >= a.n) return;
  const std::uint32_t token = a.tokens[end - 1];
  if (a.tokens[end] != token || !a.holds(token)) return;
  if (first > 0 && a.tokens[first - 1] == token) return;
  const std::int64_t column = (blockIdx.y * blockDim.x + threadIdx.x) * std::int64_t{N};
  if (column >= a.width || *a.refused) return;
  std::int64_t last = blockIdx.x + 1, beyond = (a.n + token_part - 1) / token_part;  // its last part: in [last, beyond)
  while (beyond - last > 1) {
    const std::int64_t middle = (last + beyond) / 2;
    (a.tokens[middle * token_part] == token ? last : beyond) = middle;
  }
  C sum[N];
  const auto tail = Lanes<C, N>::load(a.partials + (2 * blockIdx.x + 1) * a.width + column);
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] = tail[k];
#pragma unroll 8
  for (std::int64_t part = blockIdx.x + 1; part <= last; ++part) {
    const auto head = Lanes<C, N>::load(a.partials + 2 * part * a.width + column);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += head[k];
  }
  a.add(token, column, sum);
}

/// Block (position, columns): dpositions[places[t]] += dy[t] + dy[t + sequence] + ...
template <int N, class Y, class G>
__global__ void __launch_bounds__(256)
    position_sums_kernel(const Y* dy, G* dpositions, std::int64_t n, std::int64_t sequence, std::int64_t width,
                         Positions places) {
  using C = std::common_type_t<compute_t<Y>, compute_t<G>>;
  const std::int64_t column = (blockIdx.y * blockDim.x + threadIdx.x) * std::int64_t{N};
  if (column >= width) return;
  C sum[N] = {};
#pragma unroll 8
  for (std::int64_t row = blockIdx.x; row < n; row += sequence) {
    const auto one = Lanes<Y, N>::load(dy + row * width + column);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += static_cast<C>(one[k]);
  }
  G* to = dpositions + places[blockIdx.x] * width + column;
  const auto before = Lanes<G, N>::load(to);
  compute_t<G> after[N];
#pragma unroll
  for (int k = 0; k < N; ++k) after[k] = before[k] + static_cast<compute_t<G>>(sum[k]);
  Lanes<G, N>::of(after).store(to);
}

#endif

}  // namespace zeropp::kernels::detail
