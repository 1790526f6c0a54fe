// SPDX-License-Identifier: Apache-2.0
// The machine under a run: its memory, and the rates that a step is compared with. Measured, in milliseconds.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/base/format.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/matmul.hpp>

namespace zeropp {

/// Bytes of physical memory.
inline double machine_memory() {
  return static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE));
}
inline int machine_cores() { return static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)); }

/// Seconds since some moment; never set back.
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

namespace detail {
/// The best of `tries` runs of f on all ranks at once, in seconds.
template <class F>
double best_time(const Comm& comm, int tries, F f) {
  double best = 1e300;
  for (int i = 0; i < tries; ++i) {
    comm.barrier();
    const double begin = steady_seconds();
    f();
    comm.barrier();
    best = std::min(best, steady_seconds() - begin);
  }
  return best;
}
}  // namespace detail

/// Floating-point operations a second of matrix products [rows, width] · [width, 4 width] in T, all ranks together. A
/// collective.
template <class T = float, Device D>
double gemm_rate(const Comm& comm, D& device, std::int64_t rows, std::int64_t width, int tries = 5) {
  const auto out = 4 * width;
  Tensor<T, 2> x(device.pool(), {rows, width}, Purpose::buffers), w(device.pool(), {out, width}, Purpose::buffers),
      y(device.pool(), {rows, out}, Purpose::buffers);
  kernels::fill(device, x.span(), static_cast<T>(0.5f));
  kernels::fill(device, w.span(), static_cast<T>(0.25f));
  device.synchronize();
  const double seconds = detail::best_time(comm, tries, [&] {
    kernels::linear_forward(device, x.data(), w.data(), static_cast<const T*>(nullptr), y.data(), rows, width, out);
    device.synchronize();
  });
  return comm.size() * 2.0 * static_cast<double>(rows * width * out) / seconds;
}

/// Bytes a second, read and written, of copies of `bytes` on every rank at once. A collective.
inline double copy_rate(const Comm& comm, Cpu& device, std::size_t bytes, int tries = 5) {
  const auto n = static_cast<std::int64_t>(bytes);
  std::vector<char> from(bytes, 1), to(bytes);
  const double seconds = detail::best_time(comm, tries, [&] {
    device.run({.name = "copy", .bytes = 2.0 * static_cast<double>(n)}, [&](auto& workers) {
      workers.for_each(n, ceil_div(n, device.threads()), [&](std::int64_t begin, std::int64_t end) {
        std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
      });
    });
  });
  return comm.size() * 2.0 * static_cast<double>(bytes) / seconds;
}

/// Cores, memory, ranks, compiler, and the two rates. A collective.
inline std::string describe_machine(const Comm& comm, Cpu& device) {
#ifdef ZEROPP_MPI
  const std::string_view mpi = "built in";
#else
  const std::string_view mpi = "not built in";
#endif
  const auto tenths = [](double value) { return static_cast<double>(static_cast<std::int64_t>(value / 1e8)) / 10; };
  const double products = gemm_rate(comm, device, 512, 768), copies = copy_rate(comm, device, std::size_t{64} << 20);
  return text(machine_cores(), " cores, ", static_cast<std::int64_t>(machine_memory()) >> 20, " MiB of memory\n",
              counted(comm.size(), "rank"), " (", comm.name(), ") of ", counted(device.threads(), "thread"), ", MPI ",
              mpi,
              "\nfloat32 products ", tenths(products), " GFLOP/s, copies ", tenths(copies),
              " GB/s, all ranks together");
}

}  // namespace zeropp
