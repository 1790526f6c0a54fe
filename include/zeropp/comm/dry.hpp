// SPDX-License-Identifier: Apache-2.0
// Ranks of a group that does not exist, for plans on the dry device.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

/// One rank of a group that does not exist: collectives are counted and move nothing. For plans on the dry device.
class DryBackend final : public CommBackend {
 public:
  DryBackend(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string_view name() const override { return "dry"; }
  bool buffers_sends() const override { return true; }
  bool moves() const override { return false; }
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
    return std::make_shared<DryBackend>(index, static_cast<int>(members.size()));
  }

 private:
  int rank_, size_;
};

inline Comm dry_comm(int rank, int size) { return Comm{std::make_shared<DryBackend>(rank, size)}; }

}  // namespace zeropp
