// SPDX-License-Identifier: Apache-2.0
// How processes find each other: each listens at a port of its own and says hello to rank 0, which tells all of them
// where all are; then each connects to the ranks below it. A hello shows protocol, token, rank and number of ranks; who
// shows other ones is refused in a sentence, and strangers are dropped without disturbing the run.
#pragma once

#include <sys/resource.h>

#include <cstdio>
#include <cstring>
#include <list>
#include <string_view>
#include <thread>
#include <vector>

#include <zeropp/comm/call.hpp>
#include <zeropp/comm/tcp/place.hpp>

namespace zeropp::detail {

inline constexpr char tcp_magic[8] = {'z', 'e', 'r', 'o', 'p', 'p', '\r', '\n'};
inline constexpr std::uint32_t tcp_protocol = 1, tcp_byte_order = 0x01020304;

struct TcpHello {
  char magic[8];
  std::uint32_t protocol, byte_order;
  std::int32_t rank, size, port, token_bytes;
  char token[longest_token + 1];
};
/// Rank 0's answer: where all ranks are, or why it refuses, in `bytes` bytes.
struct TcpAnswer {
  char magic[8];
  std::int32_t refused, bytes;
};
struct TcpEntry {
  char host[60];  ///< empty: the host of rank 0
  std::int32_t port;
};

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T>{&value, 1});
}
template <class T>
std::span<std::byte> writable_bytes_of(T& value) {
  return std::as_writable_bytes(std::span<T>{&value, 1});
}

class TcpRendezvous {
 public:
  TcpRendezvous(TcpPlace place, std::chrono::nanoseconds limit) : place_(std::move(place)), limit_(limit) {
    expect_handles();
  }

  /// A connection to every rank, by number; none to this one.
  std::vector<Socket> join() {
    sockets_.resize(static_cast<std::size_t>(place_.size));
    const auto deadline = std::chrono::steady_clock::now() + limit_;
    const auto ports = text("set ZEROPP_PORT to a free one, or MASTER_PORT to one whose ",
                            "neighbour MASTER_PORT + ZEROPP_PORT_OFFSET is free, the same for all ranks");
    const Socket listener =
        listen_at({place_.meet.host, place_.rank == 0 ? place_.meet.port : 0}, std::max(128, place_.size), ports);
    if (place_.rank == 0) {
      receive(listener, deadline);
    } else {
      const auto all = enter(own_address(listener).port, deadline);
      for (int r = 1; r < place_.rank; ++r) sockets_[static_cast<std::size_t>(r)] = connect(r, all, 0, deadline);
      receive(listener, deadline);
    }
    return std::move(sockets_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// Somebody who has connected and not said all of its hello.
  struct Guest {
    Socket socket;
    Address from;
    Deadline patience;
    TcpHello hello = {};
    std::size_t got = 0;
  };

  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int r = place_.rank + 1; r < place_.size; ++r)
      if (!sockets_[static_cast<std::size_t>(r)]) ranks.push_back(r);
    return ranks;
  }

  /// Waits for the ranks above this one. Rank 0 then tells them where all are.
  void receive(const Socket& listener, Deadline deadline) {
    std::list<Guest> guests;
    std::vector<TcpEntry> entries(sockets_.size());
    entries[0].port = place_.meet.port;
    while (!missing().empty()) {
      if (Clock::now() >= deadline) give_up();
      if (place_.rank == 0) say_late(text("rank 0 waits at ", text_of(place_.meet), " for ", ranks_text(missing())));
      std::vector<pollfd> polled{{listener.handle(), POLLIN, 0}};
      for (const auto& guest : guests) polled.push_back({guest.socket.handle(), POLLIN, 0});
      for (const auto& socket : sockets_)
        if (socket) polled.push_back({socket.handle(), POLLRDHUP, 0});
      if (::poll(polled.data(), polled.size(), 50) < 0 && errno != EINTR)
        throw CommError(text("waiting for the other ranks: ", system_text(errno)));
      auto events = polled.begin() + 1 + static_cast<std::ptrdiff_t>(guests.size());
      for (int r = 0; r < place_.size && verdict_.empty(); ++r)  // one that joined and is gone will not come again
        if (sockets_[static_cast<std::size_t>(r)] && (events++)->revents != 0) {
          verdict_ = text("rank ", r, " ended before all ranks had joined");
          if (place_.rank > 0) fail(verdict_);
          tell(true, std::as_bytes(std::span{verdict_}), Clock::now());
          deadline = std::min(deadline, Clock::now() + std::chrono::seconds(5));  // those on their way are told as well
        }
      for (auto guest = guests.begin(); guest != guests.end();) {
        const bool done = hear(*guest, entries);
        guest = done ? guests.erase(guest) : std::next(guest);
      }
      while (Socket socket{::accept4(listener.handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)}) {
        tune(socket);
        auto from = peer_address(socket);
        guests.push_back({std::move(socket), std::move(from), Clock::now() + std::chrono::seconds(5)});
        if (guests.size() > sockets_.size() + 256) guests.pop_front();  // who says nothing does not fill the house
      }
    }
    if (!verdict_.empty()) throw CommError(verdict_);
    if (place_.rank == 0) tell(false, std::as_bytes(std::span{entries}), deadline);
  }

  /// True if nothing more is to be heard from the guest: it is a rank now, or refused, or gone.
  bool hear(Guest& guest, std::vector<TcpEntry>& entries) {
    auto& hello = guest.hello;
    const auto whole = writable_bytes_of(hello);
    const auto got = ::recv(guest.socket.handle(), whole.data() + guest.got, whole.size() - guest.got, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return guest.patience < Clock::now();
    if (got <= 0) return true;
    guest.got += static_cast<std::size_t>(got);
    const auto seen = std::min(guest.got, sizeof hello.magic);
    if (std::memcmp(hello.magic, tcp_magic, seen) != 0) return note(guest, "something that is no rank");
    if (guest.got < whole.size()) return guest.patience < Clock::now();

    const auto is = text("rank ", hello.rank, " of ", hello.size);
    if (hello.protocol != tcp_protocol || hello.byte_order != tcp_byte_order)
      return refuse(guest, is, "it was built with another version of zeropp, or for another kind of processor");
    const auto bytes = std::min<std::size_t>(static_cast<std::size_t>(std::max(0, hello.token_bytes)), longest_token);
    if (std::string_view(hello.token, bytes) != place_.token)
      return refuse(guest, is,
                    "its token is another one, so it belongs to another run; ZEROPP_TOKEN must be the same "
                    "for all ranks");
    if (hello.size != place_.size)
      return refuse(guest, is,
                    text("this run has ", place_.size, " ranks; start all with the same number (WORLD_SIZE)"));
    if (hello.rank <= place_.rank || hello.rank >= place_.size)
      return refuse(guest, is, text("rank ", place_.rank, " expects only ranks above it"));
    auto& socket = sockets_[static_cast<std::size_t>(hello.rank)];
    if (socket)
      return refuse(guest, is,
                    text("rank ", hello.rank, " has joined before, from ", text_of(peer_address(socket)),
                         "; give each process a number of its own (RANK)"));
    auto& entry = entries[static_cast<std::size_t>(hello.rank)];
    entry.port = hello.port;
    const auto& host = guest.from.host;
    if (!is_loopback(host) && host.size() < sizeof entry.host) std::memcpy(entry.host, host.data(), host.size());
    if (!verdict_.empty()) answer(guest.socket, true, std::as_bytes(std::span{verdict_}), Clock::now());
    socket = std::move(guest.socket);
    return true;
  }

  bool refuse(Guest& guest, const std::string& who, const std::string& why) {
    answer(guest.socket, true, std::as_bytes(std::span{why}), Clock::now());
    return note(guest, text(who, ": ", why));
  }
  bool note(const Guest& guest, const std::string& who) {
    if (++refused_ <= 10)
      std::fprintf(stderr, "warning: rank %d refuses %s (from %s)\n", place_.rank, who.c_str(),
                   text_of(guest.from).c_str());
    return true;
  }

  /// Says once what this rank has waited for longer than ranks that start together take.
  void say_late(const std::string& words) {
    if (said_ || Clock::now() < begin_ + std::chrono::seconds(5)) return;
    said_ = true;
    std::fprintf(stderr, "%s of %d, for %s at most\n", words.c_str(), place_.size, seconds_text(limit_).c_str());
  }

  [[noreturn]] void give_up() {
    if (!verdict_.empty()) throw CommError(verdict_);
    const auto late = missing();
    auto sentence = text("rank ", place_.rank, " waited ", seconds_text(limit_), " for ", ranks_text(late), " of ",
                         place_.size, " to join at ", text_of(place_.meet), ", which did not come");
    if (refused_ > 0)
      sentence += text("; ", refused_, refused_ == 1 ? " other was refused" : " others were refused", " meanwhile");
    if (place_.rank == 0 && !is_own_host(place_.meet.host))
      sentence += text("; ", place_.meet.host, " (MASTER_ADDR) is no address of this host, where rank 0 is");
    fail(sentence);
  }
  /// Ends the start; rank 0 tells those that wait for it.
  [[noreturn]] void fail(const std::string& sentence) {
    if (place_.rank == 0) tell(true, std::as_bytes(std::span{sentence}), Clock::now());
    throw CommError(sentence);
  }

  void tell(bool refused, std::span<const std::byte> what, Deadline deadline) {
    for (int r = 1; r < place_.size; ++r) {
      const auto& socket = sockets_[static_cast<std::size_t>(r)];
      if (!socket) continue;
      const auto reason = answer(socket, refused, what, std::max(deadline, Clock::now() + std::chrono::seconds(1)));
      if (!refused && !reason.empty()) throw CommError(text("rank ", r, " ended while all ranks joined: ", reason));
    }
  }
  static std::string answer(const Socket& socket, bool refused, std::span<const std::byte> what, Deadline deadline) {
    TcpAnswer answer{{}, refused, static_cast<std::int32_t>(what.size())};
    std::memcpy(answer.magic, tcp_magic, sizeof tcp_magic);
    std::string reason;
    if (send_all(socket, bytes_of(answer), deadline, reason)) send_all(socket, what, deadline, reason);
    return reason;
  }

  /// Says hello to rank 0 and waits until it tells where all ranks are, which it does when all have come.
  std::vector<TcpEntry> enter(int port, Deadline deadline) {
    sockets_[0] = connect(0, {}, port, deadline);
    // Rank 0 was there before this moment, so its limit ends first, and it knows who is missing.
    const auto patience = Clock::now() + limit_ + std::chrono::seconds(1);
    const auto at = text("rank 0 at ", text_of(place_.meet));
    std::string reason;
    TcpAnswer answer{};
    if (!receive_all(sockets_[0], writable_bytes_of(answer), patience, reason))
      throw CommError(text("rank ", place_.rank, " said hello to ", at, " and got no answer: ", reason));
    if (std::memcmp(answer.magic, tcp_magic, sizeof tcp_magic) != 0 || answer.bytes < 0 || answer.bytes > (1 << 26))
      throw CommError(text("what listens at ", text_of(place_.meet),
                           " is no rank of zeropp; set ZEROPP_PORT to another "
                           "port, the same for all ranks"));
    std::string what(static_cast<std::size_t>(answer.bytes), '\0');
    if (!receive_all(sockets_[0], std::as_writable_bytes(std::span{what}), patience, reason))
      throw CommError(text("rank ", place_.rank, " got half an answer of ", at, ": ", reason));
    if (answer.refused)
      throw CommError(text("rank ", place_.rank, " of ", place_.size, " cannot join ", at, ": ", what));
    std::vector<TcpEntry> entries(sockets_.size());
    if (what.size() != entries.size() * sizeof(TcpEntry))
      throw CommError(text(at, " names another number of ranks than ", place_.size));
    std::memcpy(entries.data(), what.data(), what.size());
    return entries;
  }

  /// Connects to rank r, as often as it takes, and says hello.
  Socket connect(int r, const std::vector<TcpEntry>& all, int port, Deadline deadline) {
    auto to = place_.meet;
    if (r > 0) {
      const auto& entry = all[static_cast<std::size_t>(r)];
      if (entry.host[0]) to.host = std::string(entry.host, ::strnlen(entry.host, sizeof entry.host));
      to.port = entry.port;
    }
    TcpHello hello{{},
                   tcp_protocol,
                   tcp_byte_order,
                   place_.rank,
                   place_.size,
                   port,
                   static_cast<std::int32_t>(place_.token.size()),
                   {}};
    std::memcpy(hello.magic, tcp_magic, sizeof tcp_magic);
    std::memcpy(hello.token, place_.token.data(), place_.token.size());
    std::string reason;
    for (auto pause = std::chrono::milliseconds(20);; pause = std::min(2 * pause, std::chrono::milliseconds(500))) {
      Socket socket = try_to_connect(to, deadline, reason);
      if (socket && send_all(socket, bytes_of(hello), deadline, reason)) return socket;
      if (r > 0 && reason == system_text(ECONNREFUSED))  // it listens until all have come
        throw CommError(text("rank ", place_.rank, " cannot connect to rank ", r, " at ", text_of(to),
                             ", which had joined: ", reason, "; it ended, or a firewall is between them"));
      say_late(text("rank ", place_.rank, " waits for rank ", r, " at ", text_of(to)));
      const auto left = deadline - Clock::now();
      if (left <= std::chrono::nanoseconds::zero())
        throw CommError(text("rank ", place_.rank, " waited ", seconds_text(limit_), " for rank ", r, " at ",
                             text_of(to), ", which did not answer: ", reason));
      std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, left));
    }
  }

  /// A connection a rank, and some for files.
  void expect_handles() const {
    rlimit limit{};
    const auto needed = static_cast<rlim_t>(place_.size) + 128;
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed) return;
    limit.rlim_cur = std::min(std::max<rlim_t>(needed, 4096), limit.rlim_max);
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < needed)
      throw ConfigError(text(place_.size, " ranks need ", needed, " open files in each process, the limit is ",
                             limit.rlim_max, "; raise it (ulimit -n), or use MPI"));
  }

  TcpPlace place_;
  std::chrono::nanoseconds limit_;
  std::vector<Socket> sockets_;
  const Deadline begin_ = Clock::now();
  bool said_ = false;
  int refused_ = 0;
  std::string verdict_;  // of a start that has failed
};

}  // namespace zeropp::detail
