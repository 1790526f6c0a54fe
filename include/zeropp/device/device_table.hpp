// SPDX-License-Identifier: Apache-2.0
// How long a kernel takes on a device that is not here, from its data sheet.
#pragma once

#include <algorithm>

#include <zeropp/device/device.hpp>

namespace zeropp {

/// A device as a table: what its data sheet says, and what fraction of it kernels achieve. A kernel takes as long as
/// its products or its memory traffic, whichever is longer, and its launch.
struct DeviceTable {
  double flops = 312e12;               ///< a second, at the precision of the products (A100, bf16)
  double memory_bandwidth = 2.039e12;  ///< bytes a second (A100 SXM, 80 GB)
  double memory_bytes = 80e9;
  double matmul = 0.7, attention = 0.4;  ///< fractions of `flops`
  double memory = 0.8;                   ///< fraction of `memory_bandwidth`
  double launch = 5e-6;                  ///< seconds before a kernel begins

  double operator()(const Cost& cost) const {
    const double rate = cost.kind == CostKind::product ? matmul : cost.kind == CostKind::attention ? attention : 0;
    const double computing = rate > 0 ? cost.flops / (rate * flops) : 0;
    return std::max(computing, cost.bytes / (memory * memory_bandwidth)) + launch;
  }
};

}  // namespace zeropp
