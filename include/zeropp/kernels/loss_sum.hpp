// SPDX-License-Identifier: Apache-2.0
// The result of a cross entropy: a sum, and the number of labels in it.
#pragma once

#include <cstdint>

namespace zeropp::kernels {

/// Sum of −log softmax(logits)[label] in nats, and how many labels it is over.
struct LossSum {
  double sum = 0;
  std::int64_t count = 0;
};

}  // namespace zeropp::kernels
