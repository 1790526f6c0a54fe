// SPDX-License-Identifier: Apache-2.0
// Fingerprints of calls, which ranks that are processes exchange, so that they find that they disagree.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <zeropp/comm/call.hpp>

namespace zeropp::detail {

inline constexpr const char* end_of_program = "the end of the program";

/// The call that a rank is about to make, as the others see it.
struct Fingerprint {
  std::uint64_t sequence;
  std::int64_t count, pieces, sizes, bytes;  ///< sizes: a hash of the pieces' sizes; bytes: sent to the reader
  std::int32_t kind, dtype, root, unused;

  static Fingerprint of(const Operation& op, std::span<const Piece> pieces) {
    std::uint64_t hash = 0xcbf29ce484222325ull;
    for (auto& piece : pieces) hash = (hash ^ static_cast<std::uint64_t>(piece.count)) * 0x100000001b3ull;
    return {op.sequence,
            op.count,
            static_cast<std::int64_t>(pieces.size()),
            static_cast<std::int64_t>(hash),
            0,
            static_cast<std::int32_t>(op.kind),
            static_cast<std::int32_t>(op.dtype),
            op.root,
            0};
  }
  bool same_call(const Fingerprint& other) const {
    return sequence == other.sequence && count == other.count && pieces == other.pieces && sizes == other.sizes &&
           kind == other.kind && dtype == other.dtype && root == other.root;
  }
  /// In words, with as much as is needed to tell it from `other`.
  std::string describe(const Fingerprint& other, const std::vector<int>& world_ranks) const {
    if (kind == kind_of_end) return std::string(end_of_program);
    const Operation op{sequence, static_cast<Collective>(kind), static_cast<DType>(dtype), count, root};
    auto out = call_text(op, world_ranks[static_cast<std::size_t>(root)]);
    const bool alike = kind == other.kind && sequence == other.sequence && count == other.count &&
                       dtype == other.dtype && root == other.root;
    if (alike && op.kind == Collective::subset) return out + ", other ones or in another order";
    if (alike && pieces > 0) out += text(" in ", pieces, pieces == other.pieces ? " pieces of other sizes" : " pieces");
    return out;
  }
  static constexpr std::int32_t kind_of_end = collective_kinds;
};

}  // namespace zeropp::detail
