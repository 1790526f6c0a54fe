// SPDX-License-Identifier: Apache-2.0
// The duties of a device: a pool, and a way to run an operation whose cost is stated. Kernels state their cost once and
// give their body as a function; the CPU runs it, the dry device only counts.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <zeropp/device/pool.hpp>

namespace zeropp {

/// The limit of an operation on a device: how fast it multiplies matrices, how fast it attends, or how fast it moves
/// bytes.
enum class CostKind : std::uint8_t { memory, product, attention };

/// The work of an operation, counted from its sizes.
struct Cost {
  std::string_view name;  ///< of the kernel, for people
  CostKind kind = CostKind::memory;
  double flops = 0;  ///< multiplications and additions
  double bytes = 0;  ///< read and written in memory, each element once
};

namespace detail {
struct AnyBody {
  template <class Where>
  void operator()(Where&&) const {}
};
}  // namespace detail

/// A device: `pool()`; `run(cost, body)`, where `body` gets what the device runs on: the host's workers, on which it
/// may call `workers.for_each(count, grain, [](std::int64_t begin, std::int64_t end) {...})`, or a stream of a GPU;
/// copies from and to the host; and `synchronize()`, which returns when all operations have run.
template <class D>
concept Device = requires(D& device, Cost cost, void* to, const void* from) {
  { device.pool() } -> std::same_as<Pool&>;
  { D::dry } -> std::convertible_to<bool>;
  device.run(cost, detail::AnyBody{});
  device.upload(to, from, std::size_t{});
  device.download(to, from, std::size_t{});
  device.synchronize();
};

}  // namespace zeropp
