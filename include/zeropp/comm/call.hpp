// SPDX-License-Identifier: Apache-2.0
// A rank's call in words, and how two calls differ: the sentences that thread ranks and MPI ranks share.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/comm/comm.hpp>

namespace zeropp::detail {

/// "all_gather number 12 of 4096 float32", "send of 4 int32 to rank 3", "broadcast number 2 of 8 float32 from rank 1";
/// `peer` is the name of the rank in op.root.
inline std::string call_text(const Operation& op, int peer) {
  switch (op.kind) {
    case Collective::send: return text("send of ", op.count, " ", name_of(op.dtype), " to rank ", peer);
    case Collective::recv: return text("recv of ", op.count, " ", name_of(op.dtype), " from rank ", peer);
    case Collective::broadcast: return text(describe(op), " from rank ", peer);
    case Collective::barrier: return text("barrier number ", op.sequence);
    case Collective::all_to_all: return text("all_to_all number ", op.sequence, " of ", name_of(op.dtype));
    case Collective::subset: return text("subset of ", op.count, " ranks");
    default: return describe(op);
  }
}

/// "rank 2", "ranks 0, 1 and 3"
inline std::string ranks_text(std::span<const int> ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i)
    out += text(i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  return out;
}

inline std::string seconds_text(std::chrono::nanoseconds time) {
  return text(std::chrono::duration<double>(time).count(), " s");
}

/// "rank 0 calls ..., rank 2 calls ...": the end of every sentence about ranks that disagree.
inline std::string differ_text(int first, const std::string& first_calls, int second, const std::string& second_calls) {
  return text("ranks disagree: rank ", first, " calls ", first_calls, ", rank ", second, " calls ", second_calls,
              "; all ranks of a group must make the same calls in the same order");
}

/// " in 3 pieces, piece 1 of 64 elements": of `mine`, where `theirs` first differ.
inline std::string pieces_text(std::span<const Piece> mine, std::span<const Piece> theirs) {
  std::size_t p = 0;
  while (p < mine.size() && p < theirs.size() && mine[p].count == theirs[p].count) ++p;
  return text(" in ", mine.size(), " pieces") +
         (p < mine.size() ? text(", piece ", p, " of ", mine[p].count, " elements") : std::string{});
}

/// A limit on waiting: above 0, and such that adding it to a time cannot overflow.
inline std::chrono::nanoseconds checked_limit(std::chrono::nanoseconds limit) {
  if (limit <= std::chrono::nanoseconds::zero())
    throw ConfigError(text("the limit on waiting for other ranks must be above 0 s, got ", seconds_text(limit)));
  return limit < std::chrono::hours(24 * 365) ? limit : std::chrono::hours(24 * 365);
}

/// A part may be its place in the whole or lie outside; anything between would be overwritten while others read it.
inline void expect_parts_in_place(const Operation& op, std::span<const Piece> pieces, int rank, int size) {
  const auto width = static_cast<std::int64_t>(size_of(op.dtype));
  for (auto& piece : pieces) {
    const auto begin = part_begin(piece.count, rank, size), end = part_begin(piece.count, rank + 1, size);
    const auto whole = reinterpret_cast<std::uintptr_t>(piece.whole),
               part = reinterpret_cast<std::uintptr_t>(piece.part);
    const auto bytes = static_cast<std::uintptr_t>(piece.count * width);
    const auto part_bytes = static_cast<std::uintptr_t>((end - begin) * width);
    if (part_bytes == 0 || part == whole + static_cast<std::uintptr_t>(begin * width)) continue;
    if (part < whole + bytes && whole < part + part_bytes)
      throw CommError(text(describe(op), ": the part of rank ", rank, " overlaps the whole of ", piece.count,
                           " elements, but does not begin at its element ", begin,
                           "; place it there or outside the whole"));
  }
}

}  // namespace zeropp::detail
