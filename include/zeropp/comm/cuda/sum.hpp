// SPDX-License-Identifier: Apache-2.0
// Sums over ranks whose memory this GPU can read: one kernel for all pieces, added in the order of ranks as
// comm/sum.hpp adds on the host, so the same bits come out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/comm/sum.hpp>
#include <zeropp/device/cuda/runtime.hpp>

#ifdef __CUDACC__
namespace zeropp::detail {

/// The sums of one launch: out[p][i] = in[p·ranks][i] + in[p·ranks + 1][i] + …, for i below count[p]. Passed by value.
struct SumTable {
  static constexpr int places = 256, most_pieces = 32;
  const void* in[places];
  void* out[most_pieces];
  std::int64_t count[most_pieces];
  int ranks;
};
static_assert(sizeof(SumTable) < 4000);  // of the 4 KiB that a kernel's parameters may take

/// Grid: x over blocks of elements, y over pieces. Sixteen bytes at a time where every pointer of a piece allows it.
template <class T>
__global__ void __launch_bounds__(256) sum_over_ranks(const __grid_constant__ SumTable table) {
  using Sum = typename sum_type<T>::type;
  constexpr int width = 16 / sizeof(T);
  const void* const* in = table.in + static_cast<int>(blockIdx.y) * table.ranks;
  T* out = static_cast<T*>(table.out[blockIdx.y]);
  const std::int64_t count = table.count[blockIdx.y];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;

  std::uintptr_t low = reinterpret_cast<std::uintptr_t>(out);
  for (int r = 0; r < table.ranks; ++r) low |= reinterpret_cast<std::uintptr_t>(in[r]);
  const std::int64_t wide = low % 16 == 0 ? count / width : 0;

  for (std::int64_t i = first; i < wide; i += step) {
    alignas(16) T elements[width];
    Sum sum[width];
    *reinterpret_cast<uint4*>(elements) = static_cast<const uint4*>(in[0])[i];
#pragma unroll
    for (int k = 0; k < width; ++k) sum[k] = static_cast<Sum>(elements[k]);
    for (int r = 1; r < table.ranks; ++r) {
      *reinterpret_cast<uint4*>(elements) = static_cast<const uint4*>(in[r])[i];
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] = static_cast<Sum>(sum[k] + static_cast<Sum>(elements[k]));
    }
#pragma unroll
    for (int k = 0; k < width; ++k) elements[k] = static_cast<T>(sum[k]);
    reinterpret_cast<uint4*>(out)[i] = *reinterpret_cast<const uint4*>(elements);
  }
  for (std::int64_t i = wide * width + first; i < count; i += step) {
    Sum sum = static_cast<Sum>(static_cast<const T*>(in[0])[i]);
    for (int r = 1; r < table.ranks; ++r)
      sum = static_cast<Sum>(sum + static_cast<Sum>(static_cast<const T*>(in[r])[i]));
    out[i] = static_cast<T>(sum);
  }
}

/// Sums of many pieces in few launches; launch() starts the last of them.
class RankSums {
 public:
  RankSums(DType dtype, int ranks, int multiprocessors, cudaStream_t stream)
      : dtype_(dtype), multiprocessors_(multiprocessors), stream_(stream) {
    table_.ranks = ranks;
    if (ranks > SumTable::places)
      throw CommError(text(ranks, " ranks of one process sum over GPUs; at most ", SumTable::places, " can"));
  }

  /// in(r) is where the `count` elements of rank r begin.
  template <class In>
  void add(const In& in, void* out, std::int64_t count) {
    if (count == 0) return;
    for (int r = 0; r < table_.ranks; ++r) table_.in[pieces_ * table_.ranks + r] = in(r);
    table_.out[pieces_] = out;
    table_.count[pieces_] = count;
    most_ = std::max(most_, count);
    if (++pieces_ == SumTable::most_pieces || (pieces_ + 1) * table_.ranks > SumTable::places) launch();
  }

  void launch() {
    if (pieces_ == 0) return;
    switch (dtype_) {
      case DType::f64: run<double>(); break;
      case DType::f32: run<float>(); break;
      case DType::bf16: run<bf16>(); break;
      case DType::f16: run<f16>(); break;
      case DType::i64: run<std::int64_t>(); break;
      case DType::i32: run<std::int32_t>(); break;
      case DType::i16: run<std::int16_t>(); break;
      case DType::u16: run<std::uint16_t>(); break;
      case DType::u8: run<std::uint8_t>(); break;
    }
    pieces_ = 0;
    most_ = 0;
  }

 private:
  template <class T>
  void run() {
    const auto wanted = ceil_div(most_, std::int64_t{256} * (16 / static_cast<std::int64_t>(sizeof(T))));
    const auto blocks = std::clamp<std::int64_t>(wanted, 1, 8 * std::int64_t{multiprocessors_});
    sum_over_ranks<T><<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(pieces_)), 256, 0, stream_>>>(table_);
    cuda_check(cudaGetLastError(), "the kernel sum_over_ranks");
  }

  SumTable table_{};
  DType dtype_;
  int multiprocessors_, pieces_ = 0;
  std::int64_t most_ = 0;
  cudaStream_t stream_;
};

}  // namespace zeropp::detail
#endif
