// SPDX-License-Identifier: Apache-2.0
// Ranks of a group that does not exist, for plans on the dry device.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

/// One rank of a group that does not exist: collectives are counted and move nothing. For plans on the dry device. As a
/// GPU's its operations are pending until waited for, so that blocks are held as long as there.
class DryBackend final : public CommBackend {
 public:
  DryBackend(int rank, int size, bool pending = false) : rank_(rank), size_(size), pending_(pending) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string_view name() const override { return "dry"; }
  bool buffers_sends() const override { return true; }
  bool moves() const override { return false; }
  bool overlaps() const override { return pending_ && size_ > 1; }
  std::uint64_t enqueued() const override { return overlaps() ? 1 : 0; }
  void reduce_scatter(const Operation&, std::span<const Piece>) override {}
  void all_gather(const Operation&, std::span<const Piece>) override {}
  void broadcast(const Operation&, std::span<std::byte>) override {}
  void all_to_all(const Operation&, std::span<const std::byte>, std::span<const std::int64_t>, std::span<std::byte>,
                  std::span<const std::int64_t>) override {}
  void send(const Operation&, int, std::span<const std::byte>) override {}
  void recv(const Operation&, int, std::span<std::byte>) override {}
  void barrier(const Operation&) override {}
  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> members) override {
    int index = 0;
    while (members[static_cast<std::size_t>(index)] != rank_) ++index;
    return std::make_shared<DryBackend>(index, static_cast<int>(members.size()), pending_);
  }

 private:
  int rank_, size_;
  bool pending_;
};

inline Comm dry_comm(int rank, int size) { return Comm{std::make_shared<DryBackend>(rank, size)}; }

namespace detail {

/// The dry communicators of a device that plans for a GPU, by what they were made from.
class DryComms {
 public:
  template <class D>
  explicit DryComms(D&) {}
  const Comm& of(const Comm& comm) {
    for (const auto& [from, dry] : made_)
      if (from.identity() == comm.identity() || dry.identity() == comm.identity()) return dry;
    made_.emplace_back(comm, Comm{std::make_shared<DryBackend>(comm.rank(), comm.size(), true)});
    return made_.back().second;
  }

 private:
  std::vector<std::pair<Comm, Comm>> made_;
};

}  // namespace detail

}  // namespace zeropp
