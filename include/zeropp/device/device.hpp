// SPDX-License-Identifier: Apache-2.0
// What a backend owes: a pool, and a way to run an operation whose cost is stated. Kernels state their cost once and
// give their body as a function; the CPU runs it, the dry device only counts.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include <zeropp/device/pool.hpp>

namespace zeropp {

/// What an operation takes, counted from its sizes.
struct Cost {
  std::string_view name;  ///< of the kernel
  double flops = 0;       ///< multiplications and additions
  double bytes = 0;       ///< read and written in memory, each element once
};

/// A device: `pool()`, and `run(cost, body)` where `body(workers)` may call
/// `workers.for_each(count, grain, [](std::int64_t begin, std::int64_t end) {...})`.
template <class D>
concept Device = requires(D& device, Cost cost) {
  { device.pool() } -> std::same_as<Pool&>;
  { D::dry } -> std::convertible_to<bool>;
  device.run(cost, [](auto&) {});
};

}  // namespace zeropp
