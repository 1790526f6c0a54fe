// SPDX-License-Identifier: Apache-2.0
// Operations of ranks, in words that they can compare: the kind of a collective, its type and count; and the interface
// of a backend, which moves the bytes.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/device/pending.hpp>

namespace zeropp {

enum class Collective : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  all_to_all,
  send,
  recv,
  barrier,
  subset
};
inline constexpr int collective_kinds = 9;

constexpr std::string_view name_of(Collective kind) {
  constexpr std::array<std::string_view, collective_kinds> names{
      "all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "send", "recv", "barrier", "subset"};
  return names[static_cast<std::size_t>(kind)];
}

/// The operation that a rank is about to start. The ranks of a group must agree on every field (send and recv: the two
/// ends on dtype and count); backends compare and name the ranks that differ.
struct Operation {
  std::uint64_t sequence = 0;  ///< number of this collective in the group, from 0
  Collective kind = Collective::barrier;
  DType dtype = DType::u8;
  std::int64_t count = 0;  ///< elements: of the whole buffer, over all pieces
  std::int32_t root = 0;   ///< broadcast: the root; send, recv: the peer

  friend bool operator==(const Operation&, const Operation&) = default;
};

/// "all_gather number 12 of 4096 float32"
inline std::string describe(const Operation& op) {
  return text(name_of(op.kind), " number ", op.sequence, " of ", op.count, " ", name_of(op.dtype));
}

/// One buffer of a grouped reduce_scatter or all_gather. `whole` holds `count` elements, of which rank r owns
/// [begin(r), begin(r + 1)) with begin(r) = min(r · ceil(count / ranks), count); `part` is this rank's share and may be
/// the same memory as its place in `whole`.
struct Piece {
  void* whole;
  void* part;
  std::int64_t count;
};

/// First element that rank `rank` of `size` owns of `count`; the end is the begin of rank + 1.
constexpr std::int64_t part_begin(std::int64_t count, int rank, int size) {
  const auto begin = rank * ceil_div(count, size);
  return begin < count ? begin : count;
}

class Comm;

/// Moves the bytes. Every call is made by all ranks of the group in the same order; implementations throw
/// CommError that names ranks and operations if they differ, if a rank died, or if one does not come within the limit.
class CommBackend : public PendingSource {
 public:
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;
  /// False if no byte is ever moved, or may be touched (dry).
  virtual bool moves() const { return true; }
  /// How rank `rank` of this group is called in sentences: its number among all ranks.
  virtual int in_world(int rank) const { return rank; }
  /// How long this rank waits for the others in one operation.
  virtual std::chrono::nanoseconds limit() const { return std::chrono::seconds(300); }

  /// The failure of any rank, where this backend learns of it without a call; else empty. From any thread.
  virtual std::string failure() const { return {}; }

  /// GPUs: the communicator over the same ranks that moves host memory. Null where this one does.
  virtual const Comm* host() const { return nullptr; }
  /// Whether operations may go on after their calls, beside what computes.
  virtual bool overlaps() const { return false; }
  /// GPUs: operations are enqueued on a stream of their own and numbered from 1; the number of the last one. 0 where an
  /// operation is over when its call returns.
  virtual std::uint64_t enqueued() const { return 0; }
  /// GPUs: what the device computes from now on runs after operation `number`.
  void join(std::uint64_t) override {}
  bool done(std::uint64_t) override { return true; }
  /// GPUs: the stream on which all of an operation is enqueued; null where it takes part in what computes, or there is
  /// none. An operation that runs after another source's holds that stream, and not what computes.
  virtual void* stream() const { return nullptr; }
  /// True if a send returns before its receiver arrives, whatever its size: then no order of receives can lock ranks.
  virtual bool buffers_sends() const { return false; }

  /// whole → part, summed in rank order; bf16 and f16 are summed in float and rounded once.
  virtual void reduce_scatter(const Operation&, std::span<const Piece>) = 0;
  /// part → whole on every rank.
  virtual void all_gather(const Operation&, std::span<const Piece>) = 0;
  virtual void broadcast(const Operation&, std::span<std::byte> data) = 0;
  /// Sends send_bytes[r] consecutive bytes of `in` to rank r; receives receive_bytes[r] from it into `out`.
  virtual void all_to_all(const Operation&, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                          std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) = 0;
  /// Messages between two ranks keep their order.
  virtual void send(const Operation&, int to, std::span<const std::byte> data) = 0;
  virtual void recv(const Operation&, int from, std::span<std::byte> data) = 0;
  virtual void barrier(const Operation&) = 0;
  /// A group of some of the ranks (ascending or not: their order is their new rank). Called by its members only.
  virtual std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> members) = 0;
};

}  // namespace zeropp
