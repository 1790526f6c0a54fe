// SPDX-License-Identifier: Apache-2.0
// Batches out of a stream of tokens. The content of a batch depends on the seed and the step only, never on the number
// of ranks: rank r takes its rows of it. Training and validation never share a token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/app/data/tokens.hpp>

namespace zeropp {

/// Tokens [begin, end) of a source.
struct TokenRange {
  std::shared_ptr<const TokenSource> source;
  std::int64_t begin = 0, end = 0;

  std::int64_t size() const { return end - begin; }
};

struct Split {
  TokenRange training, validation;
};

/// The last `fraction` of the tokens is held out. No window crosses the cut.
inline Split split(std::shared_ptr<const TokenSource> source, double fraction) {
  if (!(fraction >= 0 && fraction < 1))
    throw ConfigError(text("the held-out fraction must be in [0, 1), got ", fraction));
  const auto size = source->size(), cut = size - static_cast<std::int64_t>(static_cast<double>(size) * fraction);
  return {{source, 0, cut}, {source, cut, size}};
}

/// Rows of one rank: labels are the tokens one place further.
struct TokenBatch {
  std::vector<std::int32_t> tokens, labels;  ///< [rows, sequence]
  std::int64_t rows = 0, sequence = 0;
  std::int64_t first_sample = 0;  ///< of the whole batch
};

struct LoaderOptions {
  std::int64_t batch = 8;      ///< rows of the whole batch, over all ranks
  std::int64_t sequence = 128;  ///< tokens of a row
  std::uint64_t seed = 1337;
  int rank = 0, ranks = 1;
};

namespace detail {
/// Throws ConfigError for sizes below 1 and a rank that is not one of them.
inline LoaderOptions valid(LoaderOptions o) {
  if (o.batch < 1 || o.sequence < 1)
    throw ConfigError(text("a batch needs at least 1 row and 1 token a row, got ", o.batch, " x ", o.sequence));
  checked_product(o.batch, o.sequence);
  if (o.ranks < 1 || o.rank < 0 || o.rank >= o.ranks)
    throw ConfigError(text("a loader is for one rank of [0, ranks), got rank ", o.rank, " of ", o.ranks));
  return o;
}
}  // namespace detail

/// Training batches. Each epoch cuts the range into windows of `sequence` tokens from a phase of its own and visits
/// them once, in an order of its own; a window is found by computation, nothing is stored. A cursor is a number of
/// samples.
class TokenLoader {
 public:
  /// Throws ConfigError for sizes below 1 and ranks outside the group, DataError where the range holds less than one batch.
  TokenLoader(TokenRange range, LoaderOptions options)
      : range_(std::move(range)), options_(detail::valid(options)) {
    // One window's length is kept back for the phase, and one token for the last label.
    windows_ = (range_.size() - options_.sequence) / options_.sequence;
    if (windows_ < 1 || range_.size() < checked_product(options_.batch, options_.sequence) + 1)
      throw DataError(text("the data hold ", range_.size(), " training tokens, less than one batch of ", options_.batch,
                           " x ", options_.sequence,
                           " and a label; use more data, a smaller batch or a shorter sequence"));
  }

  /// This rank's rows of the batch of `step`, from 0, where every step takes as many rows.
  TokenBatch at(std::int64_t step) const { return at_sample(step * options_.batch); }

  /// This rank's rows of the batch that begins with the `first` sample since the begin of training.
  TokenBatch at_sample(std::int64_t first) const {
    const auto begin = part_begin(options_.batch, options_.rank, options_.ranks),
               end = part_begin(options_.batch, options_.rank + 1, options_.ranks);
    TokenBatch batch{{}, {}, end - begin, options_.sequence, begin};
    std::vector<std::int32_t> window(static_cast<std::size_t>(options_.sequence + 1));
    for (auto row = begin; row < end; ++row) {
      range_.source->read(range_.begin + position(first + row), window);
      batch.tokens.insert(batch.tokens.end(), window.begin(), window.end() - 1);
      batch.labels.insert(batch.labels.end(), window.begin() + 1, window.end());
    }
    return batch;
  }

  std::int64_t windows() const { return windows_; }  ///< of an epoch

  /// First token, within the range, of sample number `sample` since the begin of training.
  std::int64_t position(std::int64_t sample) const {
    const auto epoch = sample / windows_;
    const Random random(options_.seed, RandomPurpose::data, 0, static_cast<std::uint64_t>(epoch));
    const auto phase = static_cast<std::int64_t>(random.bits(0)) % options_.sequence;
    return phase + permuted(sample % windows_, random) * options_.sequence;
  }

 private:
  /// A bijection of [0, windows): a Feistel network of four rounds over the next even power of two, walked until it
  /// falls inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
  std::int64_t permuted(std::int64_t index, const Random& random) const {
    int half = 1;
    while ((std::int64_t{1} << (2 * half)) < windows_) ++half;
    const auto mask = (std::uint64_t{1} << half) - 1;
    auto value = static_cast<std::uint64_t>(index);
    do {
      auto left = value >> half, right = value & mask;
      for (std::uint64_t round = 1; round <= 4; ++round) {
        const auto mixed = random.bits((round << 40 | right) * 4) & mask;
        left = std::exchange(right, left ^ mixed);
      }
      value = left << half | right;
    } while (value >= static_cast<std::uint64_t>(windows_));
    return static_cast<std::int64_t>(value);
  }

  TokenRange range_;
  LoaderOptions options_;
  std::int64_t windows_ = 0;
};

/// Validation batches: windows side by side that cover the range once; the last one may be short, filled up with tokens
/// 0 whose labels do not count (-1).
class EvaluationLoader {
 public:
  /// Throws ConfigError as TokenLoader does, DataError for less than two tokens.
  EvaluationLoader(TokenRange range, LoaderOptions options)
      : range_(std::move(range)), options_(detail::valid(options)) {
    if (range_.size() < 2)
      throw DataError(
          text("the data hold ", range_.size(), " tokens for validation, at least 2 are needed; hold out more"));
    batches_ = ceil_div(ceil_div(range_.size() - 1, options_.sequence), options_.batch);
  }

  std::int64_t batches() const { return batches_; }
  /// Tokens that are predicted, of all batches.
  std::int64_t labels() const { return range_.size() - 1; }

  TokenBatch at(std::int64_t index) const {
    const auto begin = part_begin(options_.batch, options_.rank, options_.ranks),
               end = part_begin(options_.batch, options_.rank + 1, options_.ranks);
    TokenBatch batch{{}, {}, end - begin, options_.sequence, begin};
    for (auto row = begin; row < end; ++row) {
      const auto first = (index * options_.batch + row) * options_.sequence;
      const auto count = std::clamp<std::int64_t>(range_.size() - 1 - first, 0, options_.sequence);
      std::vector<std::int32_t> window(static_cast<std::size_t>(count ? count + 1 : 0));
      if (count) range_.source->read(range_.begin + first, window);
      for (std::int64_t t = 0; t < options_.sequence; ++t) {
        batch.tokens.push_back(t < count ? window[static_cast<std::size_t>(t)] : 0);
        batch.labels.push_back(t < count ? window[static_cast<std::size_t>(t + 1)] : -1);
      }
    }
    return batch;
  }

 private:
  TokenRange range_;
  LoaderOptions options_;
  std::int64_t batches_ = 0;
};

}  // namespace zeropp
