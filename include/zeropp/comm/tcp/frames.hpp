// SPDX-License-Identifier: Apache-2.0
// Frames travel between two ranks over TCP, each a header and bytes. A connection keeps the frames still to be sent and
// those that have come; it never waits.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <zeropp/comm/fingerprint.hpp>
#include <zeropp/comm/tcp/socket.hpp>

namespace zeropp::detail {

enum class TcpKind : std::int32_t {
  meeting,  ///< of a collective: every member sends one to every other
  message,  ///< of send
  failure   ///< the sender ends; the bytes say why
};

struct TcpFrame {
  static constexpr std::uint32_t mark = 0x7a70702b;
  std::uint32_t magic = mark;
  TcpKind kind = TcpKind::meeting;
  std::uint64_t group = 0;
  std::int64_t bytes = 0;  ///< that follow
  Fingerprint call = {};   ///< message: count and dtype; failure: the exit code, in count
};

struct TcpArrival {
  TcpFrame frame;
  std::unique_ptr<std::byte[]> data;
};

using TcpParts = std::vector<std::span<const std::byte>>;

class TcpConnection {
 public:
  /// The arrivals for one group that are not taken yet, in the order sent.
  struct Inbox {
    std::deque<TcpArrival> meetings, messages;
  };

  Socket socket;
  std::map<std::uint64_t, Inbox> inboxes;  ///< by group
  bool ended = false;                      ///< the other rank has called the end of the program
  std::uint64_t activity = 0;              ///< grows with what is sent and received

  bool flushed() const { return out_.empty(); }

  /// `parts` must stay until flushed(), unless it is `own`.
  void post(TcpFrame frame, TcpParts parts, std::vector<std::byte> own = {}) {
    if (!own.empty()) parts = {std::as_bytes(std::span{own})};
    for (auto part : parts) frame.bytes += static_cast<std::int64_t>(part.size());
    out_.push_back(Outgoing{frame, std::move(parts), std::move(own)});
  }

  /// Forgets what is not sent; what is half sent is finished from memory of its own.
  void withdraw() {
    if (out_.empty()) return;
    out_.erase(out_.begin() + (out_.front().sent > 0), out_.end());
    if (out_.empty() || !out_.front().own.empty()) return;
    auto& half = out_.front();
    for (auto part : half.parts) half.own.insert(half.own.end(), part.begin(), part.end());
    half.parts = {std::as_bytes(std::span{half.own})};
  }
  void forget() { out_.clear(); }

  /// Sends what the system takes now. False, and the error, where the connection is lost.
  bool write(int& error) {
    for (std::size_t budget = std::size_t{4} << 20; !out_.empty();) {
      auto& next = out_.front();
      std::array<iovec, 32> vectors;
      const auto count = next.rest(vectors);
      msghdr message{};
      message.msg_iov = vectors.data();
      message.msg_iovlen = count;
      const auto sent = ::sendmsg(socket.handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0) {
        error = errno;
        if (error == EINTR) continue;
        return error == EAGAIN || error == EWOULDBLOCK;
      }
      activity += static_cast<std::uint64_t>(sent);
      next.sent += static_cast<std::size_t>(sent);
      if (next.sent == next.size()) out_.pop_front();
      if (static_cast<std::size_t>(sent) >= budget) return true;  // the others' turn
      budget -= static_cast<std::size_t>(sent);
    }
    return true;
  }

  /// Receives what is there. `take(arrival)` gets each whole frame. False, and the error (0: closed by the other end),
  /// where the connection is lost.
  template <class Take>
  bool read(int& error, const Take& take) {
    for (std::size_t budget = std::size_t{4} << 20;;) {
      const bool head = got_ < sizeof(TcpFrame);
      auto* to = head ? reinterpret_cast<std::byte*>(&in_.frame) + got_ : in_.data.get() + (got_ - sizeof(TcpFrame));
      const auto most = head ? sizeof(TcpFrame) - got_ : total() - got_;
      const auto got = ::recv(socket.handle(), to, std::min(most, budget), MSG_DONTWAIT);
      if (got <= 0) {
        error = got == 0 ? 0 : errno;
        if (got < 0 && error == EINTR) continue;
        return got < 0 && (error == EAGAIN || error == EWOULDBLOCK);
      }
      activity += static_cast<std::uint64_t>(got);
      got_ += static_cast<std::size_t>(got);
      if (head && got_ == sizeof(TcpFrame)) begin();
      if (got_ >= sizeof(TcpFrame) && got_ == total()) {
        got_ = 0;
        take(std::exchange(in_, TcpArrival{}));
      }
      if (static_cast<std::size_t>(got) >= budget) return true;
      budget -= static_cast<std::size_t>(got);
    }
  }

 private:
  struct Outgoing {
    TcpFrame frame;
    TcpParts parts;
    std::vector<std::byte> own;
    std::size_t sent = 0;

    std::size_t size() const { return sizeof frame + static_cast<std::size_t>(frame.bytes); }
    /// Fills `vectors` with what is not sent, as much of it as they hold; returns how many it took.
    std::size_t rest(std::span<iovec> vectors) const {
      std::size_t skip = sent, used = 0;
      const auto add = [&](std::span<const std::byte> part) {
        const auto begin = std::min(skip, part.size());
        skip -= begin;
        if (begin < part.size() && used < vectors.size())
          vectors[used++] = {const_cast<std::byte*>(part.data() + begin), part.size() - begin};
      };
      add(std::as_bytes(std::span<const TcpFrame>{&frame, 1}));
      for (auto part : parts) add(part);
      return used;
    }
  };

  std::size_t total() const { return sizeof(TcpFrame) + static_cast<std::size_t>(in_.frame.bytes); }
  void begin() {
    const auto& frame = in_.frame;
    if (frame.magic != TcpFrame::mark || frame.bytes < 0 || frame.bytes > std::int64_t{1} << 42)
      throw CommError("what came is no message of zeropp");
    if (frame.bytes > 0) in_.data = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(frame.bytes));
  }

  std::deque<Outgoing> out_;
  TcpArrival in_;
  std::size_t got_ = 0;
};

}  // namespace zeropp::detail
