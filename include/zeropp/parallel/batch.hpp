// SPDX-License-Identifier: Apache-2.0
// A batch of token sequences on one rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <zeropp/device/device.hpp>
#include <zeropp/device/tensor.hpp>

namespace zeropp {

struct Batch {
  Tensor<std::int32_t, 2> tokens;   ///< [B, T]
  Tensor<std::int32_t, 2> labels;   ///< [B, T]; negative: no loss at that place
  std::int64_t first_sample = 0;    ///< index of the first row in the whole batch, over all ranks
  std::int64_t labels_in_step = 0;  ///< labels that count, over all ranks; 0: counted by a collective

  std::int64_t rows() const { return tokens.extent(0); }
  std::int64_t context() const { return tokens.extent(1); }

  /// Room for `rows` sequences of `context` tokens, kept by the caller and filled anew each step.
  template <Device D>
  static Batch on(D& device, std::int64_t rows, std::int64_t context) {
    const auto bytes = static_cast<std::size_t>(checked_product(checked_product(rows, context), sizeof(std::int32_t)));
    const Extents<2> shape{rows, context};
    return {{shape, device.pool().keep(bytes, Purpose::buffers)}, {shape, device.pool().keep(bytes, Purpose::buffers)}};
  }
  void fill(std::span<const std::int32_t> token_values, std::span<const std::int32_t> label_values) {
    if (static_cast<std::int64_t>(token_values.size()) != tokens.size() || token_values.size() != label_values.size())
      throw ConfigError(text("a batch of ", rows(), " x ", context(), " is filled with ", token_values.size(),
                             " tokens and ", label_values.size(), " labels"));
    std::copy(token_values.begin(), token_values.end(), tokens.data());
    std::copy(label_values.begin(), label_values.end(), labels.data());
  }
};

/// Labels that count; 0 on the dry device.
template <Device D>
std::int64_t count_labels(D& device, const Batch& batch) {
  std::int64_t count = 0;
  device.run({.name = "count labels"}, [&](auto&) {
    for (auto label : batch.labels.span()) count += label >= 0;
  });
  return count;
}

}  // namespace zeropp
