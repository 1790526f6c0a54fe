// SPDX-License-Identifier: Apache-2.0
// Copies between a GPU and the tiers beside raw calls, in one run: page-locked memory beside cudaMemcpyAsync, plain
// memory beside the slower one of cudaMemcpyAsync and memcpy by four threads, a disk beside reads and writes past the
// page cache with as many requests under way. Up is to the GPU. Both directions at once: the sum of both.
//   nvcc -std=c++20 -arch=sm_90a -O2 -I include bench/gpu_tiers.cu -o gpu_tiers && ./gpu_tiers [folder] [MiB on disk]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <zeropp/device/tiers/cuda/copies.hpp>
#include <zeropp/device/tiers/disk_tier.hpp>
#include <zeropp/device/tiers/host_tier.hpp>
#include <zeropp/device/tiers/pinned_tier.hpp>

using namespace zeropp;

namespace {

enum Direction { up = 1, down = 2, both_ways = 3 };
constexpr const char* names[] = {"", "up", "down", "both"};

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
/// GB/s of the raw work and of ours, the medians of `tries` that take turns.
struct Rates {
  double raw, ours;
};
Rates rates(double bytes, int tries, const std::function<void()>& raw, const std::function<void()>& ours) {
  std::vector<double> raw_times, our_times;
  raw(), ours();
  for (int i = 0; i < tries; ++i) raw_times.push_back(seconds_of(raw)), our_times.push_back(seconds_of(ours));
  std::sort(raw_times.begin(), raw_times.end()), std::sort(our_times.begin(), our_times.end());
  const auto middle = static_cast<std::size_t>(tries / 2);
  return {bytes / raw_times[middle] / 1e9, bytes / our_times[middle] / 1e9};
}
void line(const char* tier, Direction direction, std::size_t copy, Rates found, double bar) {
  const double ratio = found.ours / found.raw;
  char wanted[32] = "";
  if (bar > 0) std::snprintf(wanted, sizeof wanted, "%.2f %s", bar, ratio >= bar ? "met" : "MISSED");
  std::printf("%-8s %-5s %10zu %10.2f %10.2f %8.3f  %s\n", tier, names[direction], copy, found.raw, found.ours, ratio,
              wanted);
  std::fflush(stdout);
}
double bar(Direction direction) { return direction == both_ways ? 0.90 : 0.95; }

/// Device memory in two halves: one is fetched to, one is stored from.
struct Place {
  explicit Place(Cuda& gpu, std::size_t bytes)
      : memory(gpu.pool().take_persistent(2 * bytes, Purpose::buffers)),
        to{memory.get(), bytes},
        from{memory.get() + bytes, bytes} {}
  Storage memory;
  std::span<std::byte> to, from;
};

/// Copies `total` bytes each way in copies of `copy` bytes, all under way at once.
void by_tier(Tier& tier, const TierBlock& in, const TierBlock& out, const Place& place, Direction direction,
             std::size_t copy, std::size_t total) {
  std::vector<Pending> pending;
  for (std::size_t done = 0; done < total; done += copy) {
    const auto at = done % place.to.size();
    if (direction & up) pending.push_back(tier.fetch(in, done % in.size(), place.to.subspan(at, copy)));
    if (direction & down) pending.push_back(tier.store(out, done % out.size(), place.from.subspan(at, copy)));
  }
  for (auto& one : pending) one.finish();
}

/// body(index) for every index below `count`, on `threads` threads.
void on_threads(int threads, std::size_t count, const std::function<void(std::size_t index, int thread)>& body) {
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      for (std::size_t i = next++; i < count; i = next++) body(i, t);
    });
  for (auto& thread : all) thread.join();
}

void page_locked(Cuda& gpu) {
  constexpr std::size_t bytes = std::size_t{256} << 20;
  const Place place(gpu, bytes);
  PinnedTier<Cuda> tier{gpu};
  const auto in = tier.allocate(bytes, Purpose::states), out = tier.allocate(bytes, Purpose::states);
  PinnedMemory memory;
  auto *raw_in = memory.allocate(bytes), *raw_out = memory.allocate(bytes);
  if (!raw_in || !raw_out) throw MemoryError("no page-locked memory for the raw copies");
  std::memset(raw_in, 1, bytes), std::memset(raw_out, 1, bytes);
  CudaStream up_stream, down_stream;
  for (const std::size_t copy : {std::size_t{1} << 20, std::size_t{16} << 20, bytes})
    for (const auto direction : {up, down, both_ways}) {
      const auto raw = [&] {
        for (std::size_t at = 0; at < bytes; at += copy) {
          if (direction & up)
            cuda_check(
                cudaMemcpyAsync(place.to.data() + at, raw_in + at, copy, cudaMemcpyHostToDevice, up_stream.get()),
                "raw copy");
          if (direction & down)
            cuda_check(
                cudaMemcpyAsync(raw_out + at, place.from.data() + at, copy, cudaMemcpyDeviceToHost, down_stream.get()),
                "raw copy");
        }
        up_stream.wait(), down_stream.wait();
      };
      const auto found = rates(static_cast<double>(bytes) * (direction == both_ways ? 2 : 1), 9, raw,
                               [&] { by_tier(tier, in, out, place, direction, copy, bytes); });
      line("pinned", direction, copy, found, copy >= (std::size_t{16} << 20) ? bar(direction) : 0);
    }
  memory.deallocate(raw_in, bytes), memory.deallocate(raw_out, bytes);
}

void plain(Cuda& gpu) {
  constexpr std::size_t bytes = std::size_t{256} << 20, piece = std::size_t{4} << 20;
  const Place place(gpu, bytes);
  HostTier<Cuda> tier{gpu};
  const auto in = tier.allocate(bytes, Purpose::states), out = tier.allocate(bytes, Purpose::states);
  std::vector<std::byte> a(bytes, std::byte{1}), b(bytes, std::byte{1});
  for (const auto direction : {up, down, both_ways}) {
    const auto raw = [&] {
      on_threads(direction == both_ways ? 8 : 4, bytes / piece * (direction == both_ways ? 2 : 1),
                 [&](std::size_t i, int) {
                   const auto at = i % (bytes / piece) * piece;
                   i < bytes / piece ? std::memcpy(a.data() + at, b.data() + at, piece)
                                     : std::memcpy(b.data() + at, a.data() + at, piece);
                 });
    };
    line("plain", direction, bytes,
         rates(static_cast<double>(bytes) * (direction == both_ways ? 2 : 1), 9, raw,
               [&] { by_tier(tier, in, out, place, direction, bytes, bytes); }),
         0);
  }
}

/// A file without a name, past the page cache.
int raw_file(const std::string& folder, std::size_t bytes) {
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (file < 0 || ::fallocate(file, 0, 0, static_cast<off_t>(bytes)) != 0)
    throw DataError(text("no raw file in '", folder, "': ", std::strerror(errno)));
  return file;
}

void on_disk(Cuda& gpu, const std::string& folder, std::size_t bytes) {
  constexpr std::size_t copy = std::size_t{64} << 20;
  const DiskTierOptions options{.folder = folder};
  const Place place(gpu, 4 * copy);
  DiskTier<Cuda> tier{gpu, options};
  std::printf("%s\n", tier.describe().c_str());
  const auto in = tier.allocate(bytes, Purpose::states), out = tier.allocate(bytes, Purpose::states);
  const int in_file = raw_file(folder, bytes), out_file = raw_file(folder, bytes);
  const auto piece = options.block_size, count = bytes / piece;
  const int requests = options.queue_depth * options.thread_count;
  PageMemory memory;  // large pages: the rate of a disk depends on them
  auto* buffers = memory.allocate(2 * static_cast<std::size_t>(requests) * piece);
  if (!buffers) throw MemoryError("no memory for the raw requests");
  std::memset(buffers, 1, 2 * static_cast<std::size_t>(requests) * piece);
  const auto move = [&](bool reads, int file, int first_buffer) {
    on_threads(requests, count, [&](std::size_t i, int thread) {
      auto* buffer = buffers + static_cast<std::size_t>(first_buffer + thread) * piece;
      const auto at = static_cast<off_t>(i * piece);
      const auto moved = reads ? ::pread(file, buffer, piece, at) : ::pwrite(file, buffer, piece, at);
      if (moved != static_cast<ssize_t>(piece)) std::printf("raw request failed: %s\n", std::strerror(errno));
    });
  };
  move(false, in_file, 0), move(false, out_file, 0);  // blocks that were never written are read from no disk
  by_tier(tier, in, in, place, down, copy, bytes), by_tier(tier, in, out, place, down, copy, bytes);
  for (const auto direction : {down, up, both_ways}) {
    const auto raw = [&] {
      std::thread reader([&] {
        if (direction & up) move(true, in_file, 0);
      });
      if (direction & down) move(false, out_file, requests);
      reader.join();
    };
    line("disk", direction, copy,
         rates(static_cast<double>(bytes) * (direction == both_ways ? 2 : 1), 5, raw,
               [&] { by_tier(tier, in, out, place, direction, copy, bytes); }),
         bar(direction));
  }
  ::close(in_file), ::close(out_file);
  memory.deallocate(buffers, 2 * static_cast<std::size_t>(requests) * piece);
}

}  // namespace

int main(int argc, char** argv) {
  if (cuda_devices() == 0) {
    std::puts("skipped: this machine has no GPU");
    return 77;
  }
  try {
    const std::string folder = argc > 1 ? argv[1] : "/tmp";
    const std::size_t disk = (argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 2048) / 64 * 64 << 20;
    Cuda gpu;
    std::printf("%s, GB/s\n%-8s %-5s %10s %10s %10s %8s  %s\n", gpu.properties().name.c_str(), "tier", "way", "bytes",
                "raw", "ours", "ratio", "bar");
    page_locked(gpu);
    plain(gpu);
    if (disk) on_disk(gpu, folder, disk);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
