// SPDX-License-Identifier: Apache-2.0
// Every collective, dtype and awkward count on any communicator, against sums computed by each rank alone. Returns a
// hash of all result bits, the same on every rank: it must not depend on what moved the bytes.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/comm/comm.hpp>

namespace zeropp::test {

class Hash {
 public:
  template <class T>
  void add(const std::vector<T>& data) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
    for (std::size_t i = 0; i < data.size() * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3ull;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325ull;
};

/// The contribution of rank `rank` to round `round`: every rank can compute it for every other.
template <class T>
std::vector<T> input_of(int rank, int round, std::int64_t count) {
  std::uint64_t state = static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint64_t>(round);
  std::vector<T> data(static_cast<std::size_t>(count));
  for (auto& value : data) {
    state = (state + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    state ^= state >> 29;
    if constexpr (std::is_integral_v<T>)
      value = static_cast<T>(state >> 7);
    else  // magnitudes over four decades, so that the order of additions shows in the bits; 16 of them fit an f16
      value = static_cast<T>(static_cast<compute_t<T>>(static_cast<double>(static_cast<std::int64_t>(state)) *
                                                       (std::is_same_v<T, f16> ? 0x1p-67 : 0x1p-63) *
                                                       static_cast<double>(1u << (state >> 20 & 15))));
  }
  return data;
}

template <class T>
std::vector<T> sum_of(int ranks, int round, std::int64_t count) {
  // bf16 in float, rounded once; integers wrap around
  using Sum = std::conditional_t<std::is_integral_v<T>, std::uint64_t, compute_t<T>>;
  std::vector<Sum> sum;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto data = input_of<T>(rank, round, count);
    if (rank == 0)
      sum.assign(data.begin(), data.end());
    else
      for (std::size_t i = 0; i < data.size(); ++i) sum[i] = sum[i] + static_cast<Sum>(data[i]);
  }
  std::vector<T> out;
  for (auto value : sum) out.push_back(static_cast<T>(value));
  return out;
}

template <class T>
void expect_same(const std::vector<T>& got, const std::vector<T>& expected, const std::string& what) {
  if (got.size() == expected.size() &&
      (got.empty() || std::memcmp(got.data(), expected.data(), got.size() * sizeof(T)) == 0))
    return;
  throw Error(text(what, " of ", expected.size(), " ", name_of(dtype_of<T>), ": wrong bits"));
}

template <class T>
std::vector<T> part_of(const std::vector<T>& whole, int rank, int size) {
  const auto count = static_cast<std::int64_t>(whole.size());
  return {whole.begin() + part_begin(count, rank, size), whole.begin() + part_begin(count, rank + 1, size)};
}

template <class T>
void collectives_of(const Comm& comm, std::int64_t count, Hash& hash) {
  const int rank = comm.rank(), size = comm.size();
  const auto mine = input_of<T>(rank, 1, count), sum = sum_of<T>(size, 1, count);

  auto reduced = mine;
  comm.all_reduce(std::span<T>(reduced));
  expect_same(reduced, sum, "all_reduce");
  hash.add(reduced);

  auto whole = mine;
  std::vector<T> part = part_of(sum, rank, size);
  const auto expected_part = part;
  std::fill(part.begin(), part.end(), T{});
  comm.reduce_scatter(std::span<T>(whole), std::span<T>(part));
  expect_same(part, expected_part, "reduce_scatter");
  expect_same(whole, mine, "reduce_scatter's input");

  const auto begin = static_cast<std::size_t>(part_begin(count, rank, size));
  comm.reduce_scatter(std::span<T>(whole), std::span<T>(whole).subspan(begin, part.size()));
  expect_same(part_of(whole, rank, size), expected_part, "reduce_scatter in place");

  std::vector<T> gathered(mine.size());
  comm.all_gather(std::span<const T>(part), std::span<T>(gathered));
  expect_same(gathered, sum, "all_gather");
  comm.all_gather(std::span<const T>(whole).subspan(begin, part.size()), std::span<T>(whole));
  expect_same(whole, reduced, "reduce_scatter and all_gather against all_reduce");

  // Three buffers at once: in place, apart, and empty.
  auto first = mine, second = input_of<T>(rank, 2, count / 3 + 1);
  const auto second_sum = sum_of<T>(size, 2, count / 3 + 1);
  auto second_part = part_of(second, rank, size);
  const Piece pieces[] = {{first.data(), first.data() + begin, count},
                          {second.data(), second_part.data(), static_cast<std::int64_t>(second.size())},
                          {nullptr, nullptr, 0}};
  comm.reduce_scatter(dtype_of<T>, pieces);
  expect_same(part_of(first, rank, size), expected_part, "grouped reduce_scatter, piece 0");
  expect_same(second_part, part_of(second_sum, rank, size), "grouped reduce_scatter, piece 1");
  comm.all_gather(dtype_of<T>, pieces);
  expect_same(first, sum, "grouped all_gather, piece 0");
  expect_same(second, second_sum, "grouped all_gather, piece 1");
  hash.add(second);

  for (int root = 0; root < size; ++root) {
    auto data = mine;
    comm.broadcast(std::span<T>(data), root);
    expect_same(data, input_of<T>(root, 1, count), "broadcast");
  }

  // Rank r sends (r + 2 s) % 5 quarters of `few` elements to rank s.
  const auto few = std::min<std::int64_t>(count, 1000);
  const auto between = [&](int from, int to) { return (from + 2 * to) % 5 * few / 4; };
  const auto sent_by = [&](int from) {
    std::int64_t sum_of_counts = 0;
    for (int to = 0; to < size; ++to) sum_of_counts += between(from, to);
    return input_of<T>(from, 3, sum_of_counts);
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
  const auto in = sent_by(rank);
  std::vector<T> out(expected.size());
  comm.all_to_all(std::span<const T>(in), sends, std::span<T>(out), receives);
  expect_same(out, expected, "all_to_all");

  // A ring, with two messages under way: everybody sends before anybody receives.
  if (size > 1) {
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    comm.send(next, std::span<const T>(mine));
    comm.send(next, std::span<const T>(second));
    std::vector<T> from_previous(mine.size()), then(second.size());
    comm.recv(previous, std::span<T>(from_previous));
    comm.recv(previous, std::span<T>(then));
    expect_same(from_previous, input_of<T>(previous, 1, count), "recv");
    expect_same(then, second_sum, "second recv");
  }
  comm.barrier();
}

template <class T>
void collectives_of(const Comm& comm, Hash& hash) {
  const std::int64_t blocks = 1024 * comm.size();  // sums go in blocks of 1024: one short, exact, one over
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{7},
                                   std::int64_t{64}, std::int64_t{1000}, blocks - 1, blocks, 2 * blocks + 1})
    collectives_of<T>(comm, count, hash);
}

inline void groups(const Comm& comm, Hash& hash) {
  const int rank = comm.rank(), size = comm.size();
  // Halves in reversed order, then groups of two of them.
  const Comm half = comm.split(rank % 2, -rank);
  if (half.size() != (size + 1 - rank % 2) / 2) throw Error("split: wrong size");
  collectives_of<float>(half, 65, hash);
  const Comm rest = half.split(half.rank() == 0, 0);
  collectives_of<bf16>(rest, 33, hash);
  collectives_of<f16>(rest, 33, hash);
  // The same members again are another group; its messages are its own.
  std::vector<int> all(static_cast<std::size_t>(size));
  std::iota(all.rbegin(), all.rend(), 0);
  const Comm reversed = comm.subset(all), again = comm.subset(all);
  if (reversed.rank() != size - 1 - rank) throw Error("subset: wrong rank");
  if (size == 1) return;
  const std::int32_t one = 1, two = 2;
  if (rank == 0) {
    again.send(again.size() - 2, std::span<const std::int32_t>(&two, 1));
    reversed.send(again.size() - 2, std::span<const std::int32_t>(&one, 1));
  }
  if (rank == 1) {
    std::int32_t first = 0, second = 0;
    reversed.recv(reversed.size() - 1, std::span<std::int32_t>(&first, 1));
    again.recv(again.size() - 1, std::span<std::int32_t>(&second, 1));
    if (first != 1 || second != 2) throw Error("messages of two groups were mixed up");
  }
  collectives_of<std::int32_t>(again, 17, hash);
}

/// Operations under way: on hosts over when they return, with the bits of those that wait.
inline void pending(const Comm& comm) {
  const std::int64_t count = 1001;
  auto whole = input_of<float>(comm.rank(), 1, count), same = whole;
  auto part = part_of(whole, comm.rank(), comm.size()), same_part = part;
  const Piece piece[] = {{whole.data(), part.data(), count}};
  const auto block = std::make_shared<int>(0);
  auto reduced = comm.reduce_scatter_async(DType::f32, piece);
  reduced.hold(block);
  if (reduced.under_way() || block.use_count() != 1) throw Error("on a host something is pending");
  comm.reduce_scatter(std::span<float>(same), std::span<float>(same_part));
  expect_same(part, same_part, "reduce_scatter_async");
  auto gathered = comm.all_gather_async(DType::f32, piece);
  if (gathered.under_way()) throw Error("on a host something is pending");
  expect_same(whole, sum_of<float>(comm.size(), 1, count), "all_gather_async");
}

/// All of it; the result is the same number on every rank.
inline std::uint64_t collectives(const Comm& comm) {
  Hash hash;
  collectives_of<double>(comm, hash);
  collectives_of<float>(comm, hash);
  collectives_of<bf16>(comm, hash);
  collectives_of<f16>(comm, hash);
  collectives_of<std::int64_t>(comm, hash);
  collectives_of<std::int32_t>(comm, hash);
  collectives_of<std::int16_t>(comm, hash);
  collectives_of<std::uint16_t>(comm, hash);
  collectives_of<std::uint8_t>(comm, hash);
  groups(comm, hash);
  const std::int64_t mine[] = {static_cast<std::int64_t>(hash.value())};
  std::vector<std::int64_t> all(static_cast<std::size_t>(comm.size()));
  comm.all_gather(std::span<const std::int64_t>(mine), std::span<std::int64_t>(all));
  Hash together;
  together.add(all);
  return together.value();
}

}  // namespace zeropp::test
