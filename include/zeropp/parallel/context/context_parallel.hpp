// SPDX-License-Identifier: Apache-2.0
// What a model does where context ranks share sequences: each takes its positions of whole rows, logits of rows that
// lie on several ranks come together, and layers that do not know about it are refused. Attention does the rest.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/layers/context.hpp>
#include <zeropp/parallel/batch.hpp>

namespace zeropp {

namespace detail {
/// Throws CommError, on all ranks of `comm`, which run along `axis`, where their batches differ. A collective of them.
template <Device D>
void expect_same_batch(D& device, const Batch& batch, const Comm& comm, std::string_view axis) {
  if (comm.size() == 1) return;
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
  const std::array<std::int64_t, 2> mine{batch.first_sample, static_cast<std::int64_t>(fingerprint)};
  std::vector<std::int64_t> all(2 * static_cast<std::size_t>(comm.size()));
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = mine[i % 2];  // dry ranks gather nothing
  comm.host().all_gather(std::span<const std::int64_t>{mine}, std::span{all});
  for (std::size_t i = 2; i < all.size(); ++i)
    if (all[i] != all[i % 2])
      throw CommError(text(axis, " rank ", i / 2, " was given another batch than ", axis, " rank 0; ranks of the ",
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

/// A request for logits of rows b·T + t of whole sequences, of which each context rank has some.
class SharedLogits {
 public:
  /// `out` is [rows, vocabulary]. Throws ConfigError for rows outside [0, B·T), and for other room than for the rows.
  SharedLogits(const ContextShard& shard, Extents<2> tokens, std::span<const std::int64_t> rows, std::span<float> out)
      : shard_(shard), request_{rows, out} {
    if (shard.size() == 1) return;
    const auto [batch, sequence] = tokens;
    const auto here = shard.share(sequence), chunk = here / shard.chunks();
    const auto positions = shard.positions(here);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] < 0 || rows[i] >= batch * sequence)
        throw ConfigError(
            text("logits of row ", rows[i], " are asked for, the tokens have ", batch * sequence, " rows"));
      for (int c = 0; c < shard.chunks(); ++c) {
        const auto at = rows[i] % sequence - positions[c * chunk];
        if (at < 0 || at >= chunk) continue;
        rows_.push_back(rows[i] / sequence * here + c * chunk + at);
        place_.push_back(i);
      }
    }
    vocabulary_ = rows.empty() ? 0 : out.size() / rows.size();
    if (rows.size() * vocabulary_ != out.size())
      throw ConfigError(text("logits of ", rows.size(), " rows are asked for, got room for ", out.size(), " numbers"));
    mine_.resize(rows_.size() * vocabulary_);
    request_ = {rows_, mine_};
    whole_ = out;
  }
  SharedLogits(const SharedLogits&) = delete;  // the request points in here
  SharedLogits& operator=(const SharedLogits&) = delete;

  LogitsRequest& request() { return request_; }

  /// Every rank then has all rows. A collective.
  void collect() {
    if (shard_.size() == 1) return;
    std::fill(whole_.begin(), whole_.end(), 0.0f);  // the host's; each row is added to zeros, exactly
    for (std::size_t i = 0; i < place_.size(); ++i)
      std::copy_n(mine_.begin() + static_cast<std::ptrdiff_t>(i * vocabulary_), vocabulary_,
                  whole_.begin() + static_cast<std::ptrdiff_t>(place_[i] * vocabulary_));
    shard_.comm().host().all_reduce(whole_);
  }

 private:
  const ContextShard& shard_;
  LogitsRequest request_;
  std::vector<std::int64_t> rows_;  ///< here
  std::vector<std::size_t> place_;  ///< in the request, of each
  std::vector<float> mine_;
  std::size_t vocabulary_ = 0;
  std::span<float> whole_;
};

namespace detail {

[[noreturn]] inline void refuse_context(const std::string& layer, int ranks) {
  throw ConfigError(text(
      layer, " does not say that ", ranks,
      " context ranks can share its sequences: declare `static constexpr LayerTraits traits{.per_position = true}` "
      "in its type if it computes each position alone, or {.shares_context = true} if it asks "
      "ctx.context_shard which positions it has"));
}

/// Throws ConfigError unless every layer inside says that it is right on a part of the sequence.
template <class L>
void check_context(L& layer, const ContextShard& shard) {
  if constexpr (!PerPosition<L>) {
    if constexpr (!Container<L> && !SharesContext<L>) {
      std::string name;
      visit_parameters(layer, [&](Parameter& p) { name = name.empty() ? "the layer of " + p.name : name; });
      refuse_context(name.empty() ? "a layer without parameters" : name, shard.size());
    }
    if constexpr (requires { layer.check_context(shard); }) layer.check_context(shard);
    zeropp::for_each_child(layer, [&](auto& child) { check_context(child, shard); });
  }
}

}  // namespace detail

}  // namespace zeropp
