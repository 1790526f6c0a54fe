// SPDX-License-Identifier: Apache-2.0
// The part of a batch that is on this rank: its positions of whole rows where context ranks share sequences; and the
// check that ranks which must be given the same batch are.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/layers/context_shard.hpp>
#include <zeropp/parallel/batch.hpp>

namespace zeropp {

namespace detail {
/// The numbers by which ranks compare a batch: its first sample, its rows, and a fingerprint of tokens and labels.
using BatchNumbers = std::array<std::int64_t, 3>;

template <Device D>
BatchNumbers batch_numbers(D& device, const Batch& batch) {
  auto fingerprint = D::dry ? 0 : batch.fingerprint;
  if constexpr (!D::dry) {
    constexpr bool on_host = !requires { D::cuda; };  // its memory may have been written to since it was filled
    if (on_host || fingerprint == 0) {
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size())),
          labels(static_cast<std::size_t>(batch.labels.size()));
      device.download(tokens.data(), batch.tokens.data(), tokens.size() * sizeof(std::int32_t));
      if (!labels.empty()) device.download(labels.data(), batch.labels.data(), labels.size() * sizeof(std::int32_t));
      fingerprint = fingerprint_of(tokens, labels);
    }
  }
  return {batch.first_sample, batch.rows(), static_cast<std::int64_t>(fingerprint)};
}

/// Throws CommError, on all ranks of `comm`, which run along `axis`, where their batches differ. A collective of them.
inline void expect_same_batch(const BatchNumbers& mine, const Comm& comm, std::string_view axis) {
  if (comm.size() == 1) return;
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(comm.size()));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = mine[i % mine.size()];  // dry ranks gather nothing
  comm.host().all_gather(std::span<const std::int64_t>{mine}, std::span{all});
  for (std::size_t i = mine.size(); i < all.size(); ++i)
    if (all[i] != all[i % mine.size()])
      throw CommError(text(axis, " rank ", i / mine.size(), " was given another batch than ", axis, " rank 0; ranks of the ",
                           axis,
                           " axis take the same batch: a loader's rank is mesh.data().rank(), of mesh.data().size()"));
}
}  // namespace detail

/// The positions of this rank, in memory of the device's pool; the batch as it is where there is one context rank.
/// Every context rank gives the same whole rows, so labels and places need no thought. Throws ConfigError
/// (ContextShard).
template <Device D>
Batch local_batch(D& device, const Batch& whole, const ContextShard& shard) {
  if (shard.size() == 1) return whole;
  const auto rows = whole.rows(), sequence = whole.sequence(), here = shard.share(sequence);
  const auto chunk = here / shard.chunks();
  std::vector<kernels::Rectangle> chunks;
  for (int c = 0; c < shard.chunks(); ++c)
    chunks.push_back({shard.positions(here)[c * chunk], sequence, c * chunk, here, rows, chunk});
  const auto cut = [&](const Tensor<std::int32_t, 2>& all) {
    if (!all) return all;
    Tensor<std::int32_t, 2> mine(device.pool(), {rows, here}, Purpose::buffers);
    kernels::copy_rectangles(device, chunks, all.data(), mine.data());
    return mine;
  };
  // Summed over ranks: labels of the whole rows count once.
  const auto labels = whole.labels_here < 0 || shard.rank() == 0 ? whole.labels_here : 0;
  return {cut(whole.tokens), cut(whole.labels), whole.first_sample, whole.labels_in_step, labels};
}

}  // namespace zeropp
