// SPDX-License-Identifier: Apache-2.0
// Tiers of the host as a device against raw calls of the same run: plain memory against memcpy by one thread, a disk
// against requests past the page cache by as many threads as it has requests under way. The folder is
// ZEROPP_BENCH_DISK, else /tmp.
#include <benchmark/benchmark.h>

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <zeropp/device/tiers/disk_tier.hpp>
#include <zeropp/device/tiers/host_tier.hpp>

using namespace zeropp;

namespace {

constexpr std::size_t bytes = std::size_t{256} << 20, copy = std::size_t{32} << 20;

std::string folder() {
  const char* given = std::getenv("ZEROPP_BENCH_DISK");
  return given ? given : "/tmp";
}
template <class F>
double seconds(const F& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

const DiskTierOptions options{.folder = folder()};
const std::size_t buffer_bytes = static_cast<std::size_t>(options.queue_depth) * options.block_size;

/// A file of its own, past the page cache; as many threads as a tier has requests under way.
class RawDisk {
 public:
  RawDisk() : file_(::open(folder().c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600)) {
    if (file_ < 0 || ::fallocate(file_, 0, 0, static_cast<off_t>(bytes)) != 0)
      throw DataError(text("no raw file in '", folder(), "': ", std::strerror(errno)));
    run(false);
  }
  RawDisk(const RawDisk&) = delete;
  RawDisk& operator=(const RawDisk&) = delete;
  ~RawDisk() {
    ::close(file_);
    memory_.deallocate(buffers_, buffer_bytes);
  }

  void run(bool reads) const {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < options.queue_depth; ++t)
      threads.emplace_back([&, buffer = buffers_ + static_cast<std::size_t>(t) * options.block_size] {
        for (std::size_t at = next++ * options.block_size; at < bytes; at = next++ * options.block_size)
          if ((reads ? ::pread(file_, buffer, options.block_size, static_cast<off_t>(at))
                     : ::pwrite(file_, buffer, options.block_size, static_cast<off_t>(at))) < 0)
            failed = true;
      });
    for (auto& thread : threads) thread.join();
    if (failed) throw DataError(text("a raw request in '", folder(), "' failed"));
  }

 private:
  int file_;
  PageMemory memory_;  // large pages, as the tier's: a disk reads and writes them faster
  std::byte* buffers_ = memory_.allocate(buffer_bytes);
};

/// Raw calls and ours take turns.
template <class T, class Options, class Raw>
void copies(benchmark::State& state, bool fetches, const Options& of_tier, const Raw& raw) {
  Cpu cpu;
  T tier{cpu, of_tier};
  const auto block = tier.allocate(bytes, Purpose::states);
  std::vector<std::byte> place(bytes, std::byte{1});
  const auto all = [&](bool up) {
    std::vector<Pending> pending;
    for (std::size_t at = 0; at < bytes; at += copy) {
      const auto part = std::span(place).subspan(at, copy);
      pending.push_back(up ? tier.fetch(block, at, part) : tier.store(block, at, part));
    }
    for (auto& one : pending) one.finish();
  };
  all(false);
  double raw_time = 0, time = 0;
  for (auto _ : state) {
    raw_time += seconds(raw);
    const double ours = seconds([&] { all(fetches); });
    time += ours;
    state.SetIterationTime(ours);
  }
  state.counters["GB/s"] = static_cast<double>(bytes) * static_cast<double>(state.iterations()) / time / 1e9;
  state.counters["of_raw"] = raw_time / time;
}

void host(benchmark::State& state) {
  std::vector<std::byte> from(bytes, std::byte{1}), to(bytes, std::byte{1});
  copies<HostTier<Cpu>>(state, true, HostTierOptions{}, [&] {
    for (std::size_t at = 0; at < bytes; at += copy) std::memcpy(to.data() + at, from.data() + at, copy);
  });
}
void disk(benchmark::State& state, bool fetches) {
  const RawDisk raw;
  copies<DiskTier<Cpu>>(state, fetches, options, [&] { raw.run(fetches); });
}
void disk_fetch(benchmark::State& state) { disk(state, true); }
void disk_store(benchmark::State& state) { disk(state, false); }
BENCHMARK(host)->Unit(benchmark::kMillisecond)->UseManualTime()->MinTime(1);
BENCHMARK(disk_fetch)->Unit(benchmark::kMillisecond)->UseManualTime()->MinTime(2);
BENCHMARK(disk_store)->Unit(benchmark::kMillisecond)->UseManualTime()->MinTime(2);

}  // namespace
