// SPDX-License-Identifier: Apache-2.0
// Logits of rows that lie on several context ranks come together on all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/layers/run_state.hpp>

namespace zeropp {

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

}  // namespace zeropp
