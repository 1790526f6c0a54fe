// SPDX-License-Identifier: Apache-2.0
// A communicator over the host whose operations run as late as the rules of device/pending.hpp allow: when they are
// waited for, and no earlier. The memory it will write is poisoned until then. Code that reads results before wait(),
// changes what an operation reads, or gives its memory back too early, comes to other bits or other sentences.
#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace test {

using namespace zeropp;

class LateBackend final : public CommBackend {
 public:
  explicit LateBackend(Comm host) : host_(std::move(host)) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string_view name() const override { return "late"; }
  const Comm* host() const override { return &host_; }
  bool overlaps() const override { return true; }
  std::uint64_t enqueued() const override { return number_; }
  void join(std::uint64_t number) override {
    for (; done_ < number; ++done_) {
      const auto work = std::move(queue_.front());
      queue_.pop_front();
      work();
    }
  }
  bool done(std::uint64_t number) override { return number <= done_; }

  void reduce_scatter(const Operation& op, std::span<const Piece> pieces) override {
    poison([this, op, all = copy(pieces)] {
      for (const auto& piece : all)
        if (!inside(piece, op)) std::memset(piece.part, 0xff, part_bytes(piece, op));
    });
    later([this, type = op.dtype, all = copy(pieces)] { host_.reduce_scatter(type, all); });
  }
  void all_gather(const Operation& op, std::span<const Piece> pieces) override {
    poison([this, op, all = copy(pieces)] {
      for (const auto& piece : all) {
        auto* whole = static_cast<std::byte*>(piece.whole);
        const auto begin = place(piece, op), end = begin + part_bytes(piece, op);
        if (!inside(piece, op)) std::memset(whole + begin, 0xff, end - begin);
        std::memset(whole, 0xff, begin);
        std::memset(whole + end, 0xff, static_cast<std::size_t>(piece.count) * size_of(op.dtype) - end);
      }
    });
    later([this, type = op.dtype, all = copy(pieces)] { host_.all_gather(type, all); });
  }
  void broadcast(const Operation& op, std::span<std::byte> data) override {
    later([this, root = op.root, data] { host_.broadcast(data, root); });
  }
  void all_to_all(const Operation&, std::span<const std::byte> in, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> out, std::span<const std::int64_t> receive_bytes) override {
    later([this, in, out, sends = std::vector(send_bytes.begin(), send_bytes.end()),
           receives = std::vector(receive_bytes.begin(), receive_bytes.end())] {
      host_.all_to_all(in, sends, out, receives);
    });
  }
  void send(const Operation&, int to, std::span<const std::byte> data) override {
    later([this, to, data] { host_.send(to, data); });
  }
  void recv(const Operation&, int from, std::span<std::byte> data) override {
    later([this, from, data] { host_.recv(from, data); });
  }
  void barrier(const Operation&) override { host_.barrier(); }
  std::shared_ptr<CommBackend> subset(const Operation&, std::span<const int> members) override {
    return std::make_shared<LateBackend>(host_.subset(members));
  }

 private:
  static std::vector<Piece> copy(std::span<const Piece> pieces) { return {pieces.begin(), pieces.end()}; }
  std::size_t place(const Piece& piece, const Operation& op) const {
    return static_cast<std::size_t>(part_begin(piece.count, rank(), size())) * size_of(op.dtype);
  }
  std::size_t part_bytes(const Piece& piece, const Operation& op) const {
    return static_cast<std::size_t>(part_begin(piece.count, rank() + 1, size())) * size_of(op.dtype) - place(piece, op);
  }
  bool inside(const Piece& piece, const Operation& op) const {
    return piece.part == static_cast<std::byte*>(piece.whole) + place(piece, op);
  }
  /// At once, or when the operations before it have run: they may read there, as the first half of an all_reduce does.
  void poison(std::function<void()> places) {
    if (queue_.empty()) return places();
    queue_.back() = [before = std::move(queue_.back()), places = std::move(places)] { before(), places(); };
  }
  void later(std::function<void()> work) {
    queue_.push_back(std::move(work));
    ++number_;
  }

  Comm host_;
  std::deque<std::function<void()>> queue_;
  std::uint64_t number_ = 0, done_ = 0;
};

inline Comm late(const Comm& host) { return Comm{std::make_shared<LateBackend>(host)}; }

}  // namespace test
