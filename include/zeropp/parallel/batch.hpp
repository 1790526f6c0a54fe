// SPDX-License-Identifier: Apache-2.0
// A batch of token sequences on one rank.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <zeropp/device/device.hpp>
#include <zeropp/device/tensor.hpp>

namespace zeropp {

/// A number that ranks compare where they must be given the same batch; never 0 (FNV-1a of pairs).
inline std::uint64_t fingerprint_of(std::span<const std::int32_t> tokens, std::span<const std::int32_t> labels) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto label = i < labels.size() ? static_cast<std::uint32_t>(labels[i]) : 0u;
    hash = (hash ^ (std::uint64_t{label} << 32 | static_cast<std::uint32_t>(tokens[i]))) * 0x100000001b3ull;
    hash ^= hash >> 29;
  }
  return hash | 1;
}

struct Batch {
  Tensor<std::int32_t, 2> tokens;   ///< [B, T]
  Tensor<std::int32_t, 2> labels;   ///< [B, T]; negative: no loss at that place
  std::int64_t first_sample = 0;    ///< index of the first row in the whole batch, over all ranks
  std::int64_t labels_in_step = 0;  ///< labels that count, over all ranks; 0: counted by a collective
  std::int64_t labels_here = -1;    ///< labels that count, this rank's in a sum over ranks; -1: not known yet
  std::uint64_t fingerprint = 0;    ///< of all tokens and labels, as they were filled: see fingerprint_of
  /// Copies from the host to where the batch lives; empty: it lives there.
  std::function<void(void* to, const void* from, std::size_t bytes)> upload = {};

  std::int64_t rows() const { return tokens.extent(0); }
  std::int64_t sequence() const { return tokens.extent(1); }

  /// Room for `rows` sequences of `sequence` tokens, kept by the caller and filled anew each step.
  template <Device D>
  static Batch on(D& device, std::int64_t rows, std::int64_t sequence) {
    const auto bytes = static_cast<std::size_t>(checked_product(checked_product(rows, sequence), sizeof(std::int32_t)));
    const Extents<2> shape{rows, sequence};
    Batch batch{{shape, device.pool().take_persistent(bytes, Purpose::buffers)},
                {shape, device.pool().take_persistent(bytes, Purpose::buffers)}};
    batch.upload = [&device](void* to, const void* from, std::size_t count) { device.upload(to, from, count); };
    return batch;
  }
  void fill(std::span<const std::int32_t> token_values, std::span<const std::int32_t> label_values) {
    if (static_cast<std::int64_t>(token_values.size()) != tokens.size() || token_values.size() != label_values.size())
      throw ConfigError(text("a batch of ", rows(), " x ", sequence(), " is filled with ", token_values.size(),
                             " tokens and ", label_values.size(), " labels"));
    put(token_values, tokens);
    put(label_values, labels);
    fingerprint = fingerprint_of(token_values, label_values);
    labels_here = std::count_if(label_values.begin(), label_values.end(), [](auto label) { return label >= 0; });
  }

 private:
  void put(std::span<const std::int32_t> values, const Tensor<std::int32_t, 2>& into) const {
    if (upload)
      upload(into.data(), values.data(), values.size_bytes());
    else
      std::copy(values.begin(), values.end(), into.data());
  }
};

}  // namespace zeropp
