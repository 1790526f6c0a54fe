// SPDX-License-Identifier: Apache-2.0
// The part of every sequence that is on this rank, where the ranks of a group share sequences. It is a property of
// the run, not of a layer: layers ask `ctx.context_shard` which positions they see, and attention exchanges through it.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include <zeropp/base/error.hpp>
#include <zeropp/comm/comm.hpp>
#include <zeropp/kernels/positions.hpp>

namespace zeropp {

/// How attention sees the positions of other ranks. ulysses: ranks exchange, so that each has all positions of some
/// heads (layers/ulysses.hpp). ring: keys and values go round (layers/ring_attention.hpp).
enum class ContextAttention { ulysses, ring };

constexpr std::string_view name_of(ContextAttention attention) {
  return attention == ContextAttention::ring ? "ring" : "ulysses";
}

/// Throws ConfigError for a name that there is not.
inline ContextAttention context_attention(std::string_view name) {
  for (auto attention : {ContextAttention::ulysses, ContextAttention::ring})
    if (name_of(attention) == name) return attention;
  throw ConfigError(text("context ranks attend by ulysses or ring, got \"", name, "\""));
}

class ContextShard {
 public:
  ContextShard() = default;  ///< one rank: whole sequences
  explicit ContextShard(Comm comm, ContextAttention attention = ContextAttention::ulysses)
      : comm_(std::move(comm)), attention_(attention) {}

  const Comm& comm() const { return comm_; }
  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  ContextAttention attention() const { return attention_; }

  /// Runs of positions on a rank. A ring balances causal work with two: of 2n chunks, rank r has number r and number
  /// 2n − 1 − r, so that early and late queries add up to the same number of keys on every rank.
  int chunks() const { return size() > 1 && attention_ == ContextAttention::ring ? 2 : 1; }

  /// Positions of a sequence of `length` that are on each rank. Throws ConfigError unless the chunks divide it.
  std::int64_t share(std::int64_t length) const {
    const auto parts = std::int64_t{size()} * chunks();
    if (length % parts)
      throw ConfigError(text("sequences of ", length, " tokens cannot be shared by ", size(),
                             " context ranks: ", name_of(attention_), " attention needs a multiple of ", parts));
    return length / size();
  }

  /// Which positions of the whole sequence the `here` ones of this rank are.
  kernels::Positions positions(std::int64_t here) const {
    if (size() == 1) return {};
    if (chunks() == 1) return {.first = rank() * here};
    const auto chunk = here / 2;
    return {.first = rank() * chunk, .length = chunk, .second = (2 * size() - 1 - rank()) * chunk};
  }

 private:
  Comm comm_;
  ContextAttention attention_ = ContextAttention::ulysses;
};

}  // namespace zeropp
