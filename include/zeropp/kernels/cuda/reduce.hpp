// SPDX-License-Identifier: Apache-2.0
// kernels/reduce.hpp on a GPU, in the CPU's order: for float, bf16 and f16, whose squares are exact in double, also
// with the CPU's bits. Eight threads take the interleaved sums of a block of 4096 elements; a warp adds a part's blocks
// in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/cuda/vector.hpp>

namespace zeropp::kernels {

namespace detail {

inline constexpr std::int64_t square_block = 4096;
inline constexpr int square_lanes = 8;

/// Up to 128 parts, by value: a kernel's parameters are read from the constant cache.
template <class T>
struct SquareParts {
  static constexpr int most = 128;
  int count = 0;
  int place[most];  ///< of its sum
  const T* data[most];
  std::int64_t size[most];
  std::int64_t first[most + 1];  ///< number of a part's first block; at `count` the number of all
};

/// Enqueues them: sums of blocks, then of parts. Where `faults` tells of a fault the first sum is NaN, so that nobody
/// goes a step with it.
template <class T>
void launch_squares(const SquareParts<T>& parts, double* blocks, double* sums, const CudaFaults* faults,
                    cudaStream_t stream);

#ifdef __CUDACC__

template <class T>
__global__ void __launch_bounds__(64) squares_kernel(const __grid_constant__ SquareParts<T> parts, double* blocks) {
  const std::int64_t block = blockIdx.x * std::int64_t{64 / square_lanes} + threadIdx.x / square_lanes;
  const int lane = threadIdx.x % square_lanes;
  double sum = 0;
  if (block < parts.first[parts.count]) {
    int low = 0, high = parts.count;  // first[low] <= block < first[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (parts.first[middle] <= block ? low : high) = middle;
    }
    const std::int64_t begin = (block - parts.first[low]) * square_block, left = parts.size[low] - begin;
    const T* from = parts.data[low] + begin;
    const auto add = [&sum](T x) {
      const double v = static_cast<compute_t<T>>(x);
      sum = fma(v, v, sum);
    };
    if (left >= square_block) {
#pragma unroll 1
      for (int i = lane; i < square_block; i += 16 * square_lanes) {
        T x[16];
#pragma unroll
        for (int k = 0; k < 16; ++k) x[k] = from[i + k * square_lanes];
#pragma unroll
        for (int k = 0; k < 16; ++k) add(x[k]);
      }
    } else {
      for (std::int64_t i = lane; i < left; i += square_lanes) add(from[i]);
    }
  }
  double total = 0;
#pragma unroll
  for (int l = 0; l < square_lanes; ++l) total += __shfl_sync(~0u, sum, l, square_lanes);
  if (lane == 0 && block < parts.first[parts.count]) blocks[block] = total;
}

/// Σ from[begin, end), in order, in every lane of a warp; none is negative.
static __device__ double sum_in_order(const double* from, std::int64_t begin, std::int64_t end) {
  double sum = 0;
  for (std::int64_t at = begin; at < end; at += 128) {
    double mine[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::int64_t i = at + 32 * k + threadIdx.x % 32;
      mine[k] = i < end ? from[i] : 0;  // adding 0 changes no sum of squares
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int l = 0; l < 32; ++l) sum += __shfl_sync(~0u, mine[k], l);
  }
  return sum;
}

/// One warp a part.
template <class T>
__global__ void __launch_bounds__(32) add_squares_kernel(const __grid_constant__ SquareParts<T> parts,
                                                         const double* blocks, double* sums, const CudaFaults* faults) {
  const double sum = sum_in_order(blocks, parts.first[blockIdx.x], parts.first[blockIdx.x + 1]);
  if (threadIdx.x != 0) return;
  const bool fault = blockIdx.x == 0 && faults->kind != CudaFaults::none;
  sums[parts.place[blockIdx.x]] = fault ? std::numeric_limits<double>::quiet_NaN() : sum;
}

template <class T>
void launch_squares(const SquareParts<T>& parts, double* blocks, double* sums, const CudaFaults* faults,
                    cudaStream_t stream) {
  if (const auto all = parts.first[parts.count])
    squares_kernel<<<static_cast<unsigned>(ceil_div(all, 64 / square_lanes)), 64, 0, stream>>>(parts, blocks);
  add_squares_kernel<<<static_cast<unsigned>(parts.count), 32, 0, stream>>>(parts, blocks, sums, faults);
}

#endif

}  // namespace detail

/// As the host's; returns at once.
template <CudaDevice D, class T>
void sums_of_squares(D& device, std::span<const std::span<T>> parts, std::span<const int> places,
                     std::span<double> sums) {
  using Parts = detail::SquareParts<std::remove_cv_t<T>>;
  std::int64_t elements = 0, blocks = 0;
  for (const auto& part : parts) {
    elements += static_cast<std::int64_t>(part.size());
    blocks += ceil_div(static_cast<std::int64_t>(part.size()), detail::square_block);
  }
  Tensor<double, 1> scratch(device.pool(), {std::max<std::int64_t>(blocks, 1)}, Purpose::buffers);
  const auto count = static_cast<double>(elements);
  device.run({.name = "sum of squares", .flops = 2 * count, .bytes = count * sizeof(T)}, [&](cudaStream_t stream) {
    if constexpr (!D::dry) {
      auto* of_blocks = scratch.data();
      for (std::size_t i = 0; i < parts.size(); i += Parts::most) {
        Parts some{};
        some.count = static_cast<int>(std::min<std::size_t>(Parts::most, parts.size() - i));
        some.first[0] = 0;
        for (int k = 0; k < some.count; ++k) {
          const auto& part = parts[i + static_cast<std::size_t>(k)];
          some.place[k] = places[i + static_cast<std::size_t>(k)];
          some.data[k] = part.data();
          some.size[k] = static_cast<std::int64_t>(part.size());
          some.first[k + 1] = some.first[k] + ceil_div(some.size[k], detail::square_block);
        }
        detail::launch_squares(some, of_blocks, sums.data(), device.faults(), stream);
        of_blocks += some.first[some.count];
      }
    }
  });
}

/// The host waits for it. 0 on the dry device.
template <CudaDevice D, class T>
double sum_of_squares(D& device, std::span<T> x) {
  Tensor<double, 1> place(device.pool(), {1}, Purpose::buffers);
  const int first = 0;
  sums_of_squares(device, std::span<const std::span<T>>(&x, 1), std::span<const int>(&first, 1), place.span());
  double sum = 0;
  device.download(&sum, place.data(), sizeof sum);
  return sum;
}

}  // namespace zeropp::kernels
