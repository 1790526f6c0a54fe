// SPDX-License-Identifier: Apache-2.0
// Every collective, dtype and awkward count on a communicator of GPUs, against sums computed on the host. `exact` for
// sums in rank order; NCCL chooses an order of its own, so there float sums may differ by their rounding.
#pragma once

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <zeropp/comm/on_device.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>

#include "../mpi/collectives.hpp"

namespace zeropp::test {

/// Elements on a GPU that begin `skew` elements behind an aligned place, poisoned at first.
template <class T>
class OnGpu {
 public:
  OnGpu(Cuda& gpu, std::int64_t count, std::int64_t skew = 0)
      : gpu_(gpu), all_(gpu.pool(), {count + skew + 1}, Purpose::buffers), count_(count), skew_(skew) {
    cuda_check(cudaMemsetAsync(all_.data(), 0x5a, all_.span().size_bytes(), gpu.stream()), "cudaMemsetAsync");
  }
  OnGpu(Cuda& gpu, const std::vector<T>& values, std::int64_t skew = 0) : OnGpu(gpu, std::ssize(values), skew) {
    gpu.upload(data(), values.data(), values.size() * sizeof(T));
  }
  T* data() const { return all_.data() + skew_; }
  std::span<T> span() const { return {data(), static_cast<std::size_t>(count_)}; }
  operator std::span<T>() const { return span(); }
  operator std::span<const T>() const { return span(); }
  std::span<T> part(const Comm& comm) const {
    const auto begin = part_begin(count_, comm.rank(), comm.size()),
               end = part_begin(count_, comm.rank() + 1, comm.size());
    return span().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  }
  std::vector<T> values() const {
    std::vector<T> host(static_cast<std::size_t>(count_));
    gpu_.download(host.data(), data(), host.size() * sizeof(T));
    return host;
  }

 private:
  Cuda& gpu_;
  Tensor<T, 1> all_;
  std::int64_t count_, skew_;
};

/// Sums of `ranks` values: the same bits, or within the rounding of as many additions in any order.
template <class T>
void expect_sum(const std::vector<T>& got, const std::vector<T>& expected, int ranks, bool exact,
                const std::string& what) {
  if constexpr (!std::is_integral_v<T>) {
    if (!exact && got.size() == expected.size()) {
      const double unit = std::is_same_v<T, bf16>    ? 0x1p-8
                          : std::is_same_v<T, f16>   ? 0x1p-11
                          : std::is_same_v<T, float> ? 0x1p-24
                                                     : 0x1p-53;
      for (std::size_t i = 0; i < got.size(); ++i) {
        // |terms| stay below 2^15 (input_of)
        const double difference = std::abs(static_cast<double>(static_cast<compute_t<T>>(got[i])) -
                                           static_cast<double>(static_cast<compute_t<T>>(expected[i])));
        if (!(difference <= 2 * ranks * unit * ranks * 0x1p15))
          throw Error(
              text(what, " of ", got.size(), " ", name_of(dtype_of<T>), ": element ", i, " is off by ", difference));
      }
      return;
    }
  }
  expect_same(got, expected, what);
}

template <class T>
void gpu_collectives_of(const Comm& comm, Cuda& gpu, std::int64_t count, std::int64_t skew, bool exact) {
  const int rank = comm.rank(), size = comm.size();
  const auto host = input_of<T>(rank, 1, count), sum = sum_of<T>(size, 1, count);
  const auto sum_part = part_of(sum, rank, size);
  const bool sums = exact || !(std::is_same_v<T, std::int16_t> || std::is_same_v<T, std::uint16_t>);

  const auto second_count = count / 3 + 1;
  const auto second_sum = sum_of<T>(size, 2, second_count);
  if (sums) {
    OnGpu<T> reduced(gpu, host, skew);
    comm.all_reduce(reduced.span());
    expect_sum(reduced.values(), sum, size, exact, "all_reduce");

    OnGpu<T> whole(gpu, host, skew), part(gpu, std::ssize(sum_part));
    comm.reduce_scatter(whole.span(), part.span());
    expect_sum(part.values(), sum_part, size, exact, "reduce_scatter");
    expect_same(whole.values(), host, "reduce_scatter's input");
    comm.reduce_scatter(whole.span(), whole.part(comm));
    expect_sum(part_of(whole.values(), rank, size), sum_part, size, exact, "reduce_scatter in place");
    comm.all_gather(std::span<const T>(whole.part(comm)), whole.span());
    expect_same(whole.values(), reduced.values(), "reduce_scatter and all_gather against all_reduce");

    // Under way, three buffers at once: in place, apart, and empty.
    OnGpu<T> first(gpu, host), second(gpu, input_of<T>(rank, 2, second_count), skew);
    OnGpu<T> second_part(gpu, std::ssize(part_of(second_sum, rank, size)), skew);
    const Piece pieces[] = {{first.data(), first.part(comm).data(), count},
                            {second.data(), second_part.data(), second_count},
                            {nullptr, nullptr, 0}};
    auto pending = comm.reduce_scatter_async(dtype_of<T>, pieces);
    pending = comm.all_gather_async(dtype_of<T>, pieces);
    pending.wait();
    expect_sum(first.values(), sum, size, exact, "grouped, piece 0");
    expect_sum(second.values(), second_sum, size, exact, "grouped, piece 1");
  }

  OnGpu<T> mine(gpu, sum_part, skew), gathered(gpu, count);
  comm.all_gather(std::span<const T>(mine.span()), gathered.span());
  expect_same(gathered.values(), sum, "all_gather");

  for (int root = 0; root < size; ++root) {
    OnGpu<T> data(gpu, host, skew);
    comm.broadcast(data.span(), root);
    expect_same(data.values(), input_of<T>(root, 1, count), "broadcast");
  }

  // Rank r sends (r + 2 s) % 5 quarters of `few` elements to rank s.
  const auto few = std::min<std::int64_t>(count, 1000);
  const auto between = [&](int from, int to) { return (from + 2 * to) % 5 * few / 4; };
  const auto sent_by = [&](int from) {
    std::int64_t all = 0;
    for (int to = 0; to < size; ++to) all += between(from, to);
    return input_of<T>(from, 3, all);
  };
  std::vector<std::int64_t> sends, receives;
  std::vector<T> expected;
  for (int other = 0; other < size; ++other) {
    sends.push_back(between(rank, other));
    receives.push_back(between(other, rank));
    const auto theirs = sent_by(other);
    std::int64_t skip = 0;
    for (int before = 0; before < rank; ++before) skip += between(other, before);
    expected.insert(expected.end(), theirs.begin() + skip, theirs.begin() + skip + receives.back());
  }
  OnGpu<T> in(gpu, sent_by(rank), skew), out(gpu, std::ssize(expected));
  comm.all_to_all(std::span<const T>(in.span()), sends, out.span(), receives);
  expect_same(out.values(), expected, "all_to_all");

  if (size > 1) {  // a ring with two messages under way, whose memory is overwritten at once
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    OnGpu<T> message(gpu, host), then(gpu, second_count), got(gpu, count), got_then(gpu, second_count);
    comm.send(next, std::span<const T>(message.span()));
    cuda_check(cudaMemsetAsync(message.data(), 0, host.size() * sizeof(T), gpu.stream()), "cudaMemsetAsync");
    const auto other = input_of<T>(rank, 5, second_count);
    gpu.upload(then.data(), other.data(), other.size() * sizeof(T));
    comm.send(next, std::span<const T>(then.span()));
    comm.recv(previous, got.span());
    comm.recv(previous, got_then.span());
    expect_same(got.values(), input_of<T>(previous, 1, count), "recv");
    expect_same(got_then.values(), input_of<T>(previous, 5, second_count), "second recv");
  }
  comm.barrier();
}

template <class T>
void gpu_collectives_of(const Comm& comm, Cuda& gpu, bool exact) {
  for (const std::int64_t count : {0, 1, 2, 3, 7, 64, 1000, 4096 * comm.size(), 100'003})
    for (const std::int64_t skew : {0, 1}) gpu_collectives_of<T>(comm, gpu, count, skew, exact);
}

inline void gpu_collectives(const Comm& comm, Cuda& gpu, bool exact) {
  gpu_collectives_of<double>(comm, gpu, exact);
  gpu_collectives_of<float>(comm, gpu, exact);
  gpu_collectives_of<bf16>(comm, gpu, exact);
  gpu_collectives_of<f16>(comm, gpu, exact);
  gpu_collectives_of<std::int64_t>(comm, gpu, exact);
  gpu_collectives_of<std::int32_t>(comm, gpu, exact);
  gpu_collectives_of<std::int16_t>(comm, gpu, exact);
  gpu_collectives_of<std::uint16_t>(comm, gpu, exact);
  gpu_collectives_of<std::uint8_t>(comm, gpu, exact);
}

/// Groups of a group: halves in reversed order, then groups of two of them.
inline void gpu_groups(const Comm& comm, Cuda& gpu, bool exact) {
  const Comm half = comm.split(comm.rank() % 2, -comm.rank());
  gpu_collectives_of<float>(half, gpu, 65, 0, exact);
  gpu_collectives_of<bf16>(half.split(half.rank() == 0, 0), gpu, 33, 1, exact);
  std::vector<int> all(static_cast<std::size_t>(comm.size()));
  std::iota(all.rbegin(), all.rend(), 0);
  const Comm reversed = comm.subset(all);
  if (reversed.rank() != comm.size() - 1 - comm.rank()) throw Error("subset: wrong rank");
  gpu_collectives_of<std::int32_t>(reversed, gpu, 17, 0, exact);
}

/// Keeps a stream busy for about so many milliseconds: what runs before a slow neighbour is found out.
inline __global__ void idle(long long cycles) {
  const auto start = clock64();
  while (clock64() - start < cycles) {
  }
}
inline void keep_busy(Cuda& gpu, double milliseconds) {
  idle<<<1, 1, 0, gpu.stream()>>>(static_cast<long long>(milliseconds * 1.7e6));
  cuda_check(cudaGetLastError(), "idle");
}

/// Rounds in which one rank's GPU is late, and memory is reused at once by what computes next.
inline void gpu_order(const Comm& comm, Cuda& gpu, int rounds, bool exact) {
  constexpr std::int64_t count = 40'000;
  for (int round = 0; round < rounds; ++round) {
    if (comm.rank() == round % comm.size()) keep_busy(gpu, 0.3);
    const auto host = input_of<float>(comm.rank(), round, count);
    const auto sum = sum_of<float>(comm.size(), round, count);
    OnGpu<float> data(gpu, host), copy(gpu, count);
    if (round % 2) {
      comm.all_reduce(data.span());
    } else {
      const Piece piece[] = {{data.data(), data.part(comm).data(), count}};
      auto reduced = comm.reduce_scatter_async(DType::f32, piece);
      auto gathered = comm.all_gather_async(DType::f32, piece);
      keep_busy(gpu, 0.1);  // computes meanwhile, elsewhere
      reduced.wait();
      gathered.wait();
    }
    // After the wait the next owner of the memory may overwrite it, whatever the other ranks do.
    cuda_check(cudaMemcpyAsync(copy.data(), data.data(), count * sizeof(float), cudaMemcpyDeviceToDevice, gpu.stream()),
               "copy");
    cuda_check(cudaMemsetAsync(data.data(), 0xff, count * sizeof(float), gpu.stream()), "memset");
    expect_sum(copy.values(), sum, comm.size(), exact, text("round ", round));
  }
}

}  // namespace zeropp::test
