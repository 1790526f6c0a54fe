// SPDX-License-Identifier: Apache-2.0
// Tiers of a GPU: bytes come back from each of them, copies keep the orders of device/pending.hpp beside kernels, and a
// plan on the dry device counts what is used.
#include <doctest/doctest.h>

#include <stdlib.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include <zeropp/device/tensor.hpp>
#include <zeropp/device/tiers/cuda/copies.hpp>
#include <zeropp/device/tiers/disk_tier.hpp>
#include <zeropp/device/tiers/host_tier.hpp>
#include <zeropp/device/tiers/lease.hpp>
#include <zeropp/device/tiers/pinned_tier.hpp>

using namespace zeropp;

namespace {

struct Folder {
  Folder() {
    char name[] = "/tmp/zeropp-tiers-XXXXXX";
    REQUIRE(::mkdtemp(name));
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

/// Takes its time, so that whoever does not wait for it is found.
__global__ void slowly_add(unsigned* x, int n, unsigned amount, long long cycles) {
  const auto begin = clock64();
  while (clock64() - begin < cycles) {
  }
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x))
    x[i] += amount;
}
void slowly_add(Cuda& gpu, std::span<unsigned> x, unsigned amount) {
  gpu.run({.name = "slowly_add"}, [&](cudaStream_t stream) {
    slowly_add<<<32, 256, 0, stream>>>(x.data(), static_cast<int>(x.size()), amount, 20'000'000);  // 10 ms and more
  });
}

std::span<std::byte> bytes_of(std::span<unsigned> x) {
  return {reinterpret_cast<std::byte*>(x.data()), x.size_bytes()};
}
std::vector<unsigned> numbers(std::size_t count, unsigned seed) {
  std::vector<unsigned> x(count);
  for (auto& one : x) one = seed = seed * 1664525u + 1013904223u;
  return x;
}
std::vector<unsigned> on_host(Cuda& gpu, std::span<const unsigned> x) {
  std::vector<unsigned> host(x.size());
  gpu.download(host.data(), x.data(), x.size_bytes());
  return host;
}

void there_and_back(Cuda& gpu, Tier& tier) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{1023}, std::size_t{70001}, std::size_t{3000001}}) {
    CAPTURE(count);
    const auto values = numbers(count, 1);
    Tensor<unsigned, 1> a(gpu.pool(), {static_cast<std::int64_t>(count)}), b(gpu.pool(), a.shape());
    gpu.upload(a.data(), values.data(), 4 * count);
    const auto block = tier.allocate(4 * count, Purpose::states);
    tier.store(block, 0, bytes_of(a.span())).finish();
    for (const std::size_t begin : {std::size_t{0}, count / 3, count - 1}) {
      cuda_check(cudaMemsetAsync(b.data(), 0xff, 4 * count, gpu.stream()), "cudaMemsetAsync");
      const auto part = b.span().subspan(begin);
      tier.fetch(block, 4 * begin, bytes_of(part)).wait();
      CHECK(on_host(gpu, part) == std::vector(values.begin() + static_cast<std::ptrdiff_t>(begin), values.end()));
      tier.store(block, 4 * begin, bytes_of(part)).wait();
    }
    tier.fetch(block, 0, bytes_of(b.span())).wait();
    CHECK(on_host(gpu, b.span()) == values);
  }
}

/// Kernels before a copy are waited for by it, kernels after wait() wait for it, and neither waits on the host.
void in_order(Cuda& gpu, Tier& tier) {
  constexpr int count = 500000;
  const auto values = numbers(count, 7);
  Tensor<unsigned, 1> x(gpu.pool(), {count}), y(gpu.pool(), {count});
  const auto block = tier.allocate(4 * count, Purpose::states), other = tier.allocate(4 * count, Purpose::states);
  gpu.upload(x.data(), values.data(), 4 * count);
  slowly_add(gpu, x.span(), 1);
  auto stored = tier.store(block, 0, bytes_of(x.span()));
  stored.wait();
  slowly_add(gpu, x.span(), 100);                           // must not reach the block
  auto fetched = tier.fetch(block, 0, bytes_of(x.span()));  // must come after that kernel
  auto copied = tier.store(other, 0, bytes_of(x.span()), std::move(fetched));
  copied.wait();
  slowly_add(gpu, x.span(), 1000);
  tier.fetch(other, 0, bytes_of(y.span())).wait();
  auto expected = values;
  for (auto& one : expected) one += 1;
  CHECK(on_host(gpu, y.span()) == expected);
  for (auto& one : expected) one += 1000;
  CHECK(on_host(gpu, x.span()) == expected);
}

void many_in_flight(Cuda& gpu, Tier& tier) {
  constexpr int blocks = 24, count = 100003;
  std::vector<TierBlock> all;
  std::vector<Tensor<unsigned, 1>> in, out;
  std::vector<Pending> pending;
  for (int i = 0; i < blocks; ++i) {
    in.emplace_back(gpu.pool(), Extents<1>{count}), out.emplace_back(gpu.pool(), Extents<1>{count});
    const auto values = numbers(count, static_cast<unsigned>(i));
    gpu.upload(in.back().data(), values.data(), 4 * count);
    all.push_back(tier.allocate(4 * count, Purpose::states));
    pending.push_back(tier.store(all.back(), 0, bytes_of(in.back().span())));
    pending.push_back(tier.fetch(all.back(), 0, bytes_of(out.back().span())));
  }
  for (auto& one : pending) one.wait();
  for (int i = 0; i < blocks; ++i)
    REQUIRE(on_host(gpu, out[static_cast<std::size_t>(i)].span()) == numbers(count, static_cast<unsigned>(i)));
}

template <class F>
void each_tier(Cuda& gpu, const F& f) {
  const Folder folder;
  HostTier<Cuda> host{gpu};
  PinnedTier<Cuda> pinned{gpu};
  DiskTier<Cuda> disk{gpu, {.folder = folder.path, .block_size = 65536}};
  for (Tier* tier : {static_cast<Tier*>(&host), static_cast<Tier*>(&pinned), static_cast<Tier*>(&disk)}) {
    CAPTURE(tier->describe());
    f(*tier);
  }
}

template <class D>
std::array<HomeBytes, 4> used(D& device, const std::string& folder) {
  HostTier<D> host{device};
  PinnedTier<D> pinned{device};
  DiskTier<D> disk{device, {.folder = folder}};
  std::vector<TierBlock> blocks;
  for (Tier* tier : {static_cast<Tier*>(&host), static_cast<Tier*>(&pinned), static_cast<Tier*>(&disk)})
    blocks.push_back(tier->allocate(123456, Purpose::states));
  for (int run = 0; run < 2; ++run) {
    Pool::Program program(device.pool(), "step");
    for (std::size_t i = 0; i < 3; ++i) {
      Lease lease(i == 0   ? static_cast<Tier&>(host)
                  : i == 1 ? static_cast<Tier&>(pinned)
                           : disk,
                  device.pool(), blocks[i]);
      static_cast<void>(lease.template write<float>());
    }
    program.finish();
  }
  std::array<HomeBytes, 4> homes;
  for (std::size_t i = 0; i < homes.size(); ++i) homes[i] = device.pool().at(static_cast<Home>(i));
  return homes;
}

}  // namespace

TEST_CASE("every tier gives back what a GPU gave it") {
  Cuda gpu;
  each_tier(gpu, [&](Tier& tier) {
    there_and_back(gpu, tier);
    many_in_flight(gpu, tier);
  });
}

TEST_CASE("copies keep the order of kernels and of chains") {
  Cuda gpu;
  each_tier(gpu, [&](Tier& tier) { in_order(gpu, tier); });
}

TEST_CASE("a copy of page-locked memory leaves the host alone") {
  Cuda gpu;
  PinnedTier<Cuda> tier{gpu};
  Tensor<unsigned, 1> x(gpu.pool(), {1 << 20}), y(gpu.pool(), {1 << 20});
  const auto block = tier.allocate(x.span().size_bytes(), Purpose::states);
  slowly_add(gpu, x.span(), 1);
  auto stored = tier.store(block, 0, bytes_of(x.span()));
  auto fetched = tier.fetch(block, 0, bytes_of(y.span()));
  auto together = both(std::move(stored), std::move(fetched));
  CHECK_FALSE(together.done());  // the kernel is still running, and both calls have returned
  together.wait();
  CHECK(on_host(gpu, x.span()) == on_host(gpu, y.span()));
  CHECK(together.done());
}

TEST_CASE("a lease hands kernels a block and takes back what they wrote") {
  Cuda gpu;
  each_tier(gpu, [&](Tier& tier) {
    const auto block = tier.allocate(4 * 10000, Purpose::states);
    const auto values = numbers(10000, 5);
    {
      Lease lease(tier, gpu.pool(), block, {.fetch = false});
      const auto x = lease.write<unsigned>();
      gpu.upload(x.data(), values.data(), x.size_bytes());
    }
    for (int i = 0; i < 3; ++i) {
      Lease lease(tier, gpu.pool(), block);
      slowly_add(gpu, lease.write<unsigned>(), 5);
      auto back = lease.end();
    }
    auto expected = values;
    for (auto& one : expected) one += 15;
    Lease lease(tier, gpu.pool(), block);
    CHECK(on_host(gpu, lease.read<unsigned>()) == expected);
  });
}

TEST_CASE("a captured step is refused") {
  Cuda gpu;
  PinnedTier<Cuda> tier{gpu};
  Tensor<unsigned, 1> x(gpu.pool(), {100});
  const auto block = tier.allocate(400, Purpose::states);
  Cuda::Capturing capturing(gpu, std::make_shared<CudaCapture>());
  CHECK_THROWS_WITH_AS(static_cast<void>(tier.fetch(block, 0, bytes_of(x.span()))),
                       doctest::Contains("is no part of a graph"), CudaError);
}

TEST_CASE("plan = use in every home") {
  const Folder folder;
  Cuda gpu;
  DryCuda dry;
  const auto use = used(gpu, folder.path), plan = used(dry, "/not/there");
  for (std::size_t i = 0; i < use.size(); ++i) {
    CAPTURE(home_names[i]);
    CHECK(plan[i].now == use[i].now);
    CHECK(plan[i].peak == use[i].peak);
    CHECK(plan[i].by == use[i].by);
  }
  CHECK(use[1].by.total() == 126976);  // plain memory holds no buffers: those are page-locked
  CHECK(use[2].by[Purpose::states] == 126976);
  CHECK(use[2].by[Purpose::buffers] == 2 * 4 * (std::size_t{4} << 20) + 2 * 8 * (std::size_t{1} << 20));
}
