// SPDX-License-Identifier: Apache-2.0
// Sockets: an owner, and what ranks need to find each other. Nothing here waits beyond a deadline, and a signal never
// ends a call early. Failures are CommErrors, or reasons in words where the caller tries again.
#pragma once

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include <zeropp/base/error.hpp>

namespace zeropp::detail {

using Deadline = std::chrono::steady_clock::time_point;

class Socket {
 public:
  Socket() = default;
  explicit Socket(int handle) : handle_(handle) {}
  Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) close(), handle_ = std::exchange(other.handle_, -1);
    return *this;
  }
  ~Socket() { close(); }
  int handle() const { return handle_; }
  explicit operator bool() const { return handle_ >= 0; }
  void close() noexcept {
    if (handle_ >= 0) ::close(std::exchange(handle_, -1));
  }

 private:
  int handle_ = -1;
};

struct Address {
  std::string host;  ///< a name or a number
  int port = 0;
};
inline std::string text_of(const Address& a) {
  return a.host.find(':') == std::string::npos ? text(a.host, ":", a.port) : text("[", a.host, "]:", a.port);
}
/// An address that only processes of this host can reach.
inline bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
}

inline std::string system_text(int error) { return std::generic_category().message(error); }

/// Waits until something of `events` is so; false at the deadline.
inline bool wait_for(int handle, short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    pollfd polled{handle, events, 0};
    const int ready = ::poll(&polled, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) throw CommError(text("waiting for a connection: ", system_text(errno)));
    if (std::chrono::steady_clock::now() >= deadline) return false;
  }
}

/// Small messages go at once; a host that vanished is noticed after half a minute of silence.
inline void tune(const Socket& socket) {
  const auto set = [&](int level, int name, int value) {
    ::setsockopt(socket.handle(), level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

inline Address address_of(const sockaddr_storage& at, socklen_t bytes) {
  char host[NI_MAXHOST] = "?", port[NI_MAXSERV] = "0";
  ::getnameinfo(reinterpret_cast<const sockaddr*>(&at), bytes, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
  std::string name = host;
  if (name.rfind("::ffff:", 0) == 0) name = name.substr(7);  // IPv4 seen by a listener of both
  return {name, std::atoi(port)};
}
inline Address own_address(const Socket& socket) {
  sockaddr_storage at{};
  socklen_t bytes = sizeof at;
  ::getsockname(socket.handle(), reinterpret_cast<sockaddr*>(&at), &bytes);
  return address_of(at, bytes);
}
inline Address peer_address(const Socket& socket) {
  sockaddr_storage at{};
  socklen_t bytes = sizeof at;
  ::getpeername(socket.handle(), reinterpret_cast<sockaddr*>(&at), &bytes);
  return address_of(at, bytes);
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;
/// Null, and why in `reason`, where the name is not known (yet).
inline AddressList resolve(const Address& a, int flags, std::string& reason) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  const int code = ::getaddrinfo(a.host.empty() ? nullptr : a.host.c_str(), text(a.port).c_str(), &hints, &found);
  if (code != 0) reason = text("the name ", a.host, " is not known: ", ::gai_strerror(code));
  return {code == 0 ? found : nullptr, &::freeaddrinfo};
}

/// Listens on `at`: where its host is a loopback address there only, else on all addresses of this host. Port 0: any
/// that is free. Throws CommError with `advice` where the port is taken.
inline Socket listen_at(const Address& at, int backlog, const std::string& advice) {
  std::string reason;
  const auto found = resolve(is_loopback(at.host) ? at : Address{"", at.port}, AI_PASSIVE, reason);
  for (const int family : {AF_INET6, AF_INET})  // a listener of both kinds first
    for (const addrinfo* a = found.get(); a; a = a->ai_next) {
      if (a->ai_family != family) continue;
      Socket socket{::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
      const int yes = 1, no = 0;
      if (socket && family == AF_INET6) ::setsockopt(socket.handle(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
      if (socket) ::setsockopt(socket.handle(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      if (socket && ::bind(socket.handle(), a->ai_addr, a->ai_addrlen) == 0 && ::listen(socket.handle(), backlog) == 0)
        return socket;
      reason = system_text(errno);
      if (errno == EADDRINUSE) throw CommError(text("port ", at.port, " of this host is taken; ", advice));
    }
  throw CommError(text("this host cannot listen on port ", at.port, ": ", reason, "; ", advice));
}

/// Whether the name is known and one of its addresses is of this host.
inline bool is_own_host(const std::string& host) {
  std::string reason;
  const auto found = resolve({host, 0}, 0, reason);
  for (const addrinfo* a = found.get(); a; a = a->ai_next)
    if (const Socket socket{::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        socket && ::bind(socket.handle(), a->ai_addr, a->ai_addrlen) == 0)
      return true;
  return false;
}

/// One attempt at every address of `to`. An empty socket, and why in `reason`, where none answers.
inline Socket try_to_connect(const Address& to, Deadline deadline, std::string& reason) {
  const auto found = resolve(to, 0, reason);
  for (const addrinfo* a = found.get(); a; a = a->ai_next) {
    Socket socket{::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    int error = socket ? 0 : errno;
    if (socket && ::connect(socket.handle(), a->ai_addr, a->ai_addrlen) != 0) {
      error = errno;
      if (error == EINPROGRESS || error == EINTR) {
        error = ETIMEDOUT;
        socklen_t bytes = sizeof error;
        if (wait_for(socket.handle(), POLLOUT,
                     std::min(deadline, std::chrono::steady_clock::now() + std::chrono::seconds(5))))
          ::getsockopt(socket.handle(), SOL_SOCKET, SO_ERROR, &error, &bytes);
      }
    }
    if (error == 0) {
      // A port that nobody listens on may be given to this very socket, which then is connected with itself.
      const auto own = own_address(socket), peer = peer_address(socket);
      if (own.host != peer.host || own.port != peer.port) {
        tune(socket);
        return socket;
      }
      error = ECONNREFUSED;
    }
    reason = system_text(error);
  }
  return {};
}

/// Sends all of `data`; false, and why in `reason`, where the other end is gone or the deadline comes.
inline bool send_all(const Socket& socket, std::span<const std::byte> data, Deadline deadline, std::string& reason) {
  while (!data.empty()) {
    const auto sent = ::send(socket.handle(), data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      data = data.subspan(static_cast<std::size_t>(sent));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (wait_for(socket.handle(), POLLOUT, deadline)) continue;
      return reason = "it took nothing in time", false;
    } else if (errno != EINTR) {
      return reason = system_text(errno), false;
    }
  }
  return true;
}

/// Receives exactly data.size() bytes; false, and why in `reason`, where they do not come.
inline bool receive_all(const Socket& socket, std::span<std::byte> data, Deadline deadline, std::string& reason) {
  while (!data.empty()) {
    const auto got = ::recv(socket.handle(), data.data(), data.size(), MSG_DONTWAIT);
    if (got > 0) {
      data = data.subspan(static_cast<std::size_t>(got));
    } else if (got == 0) {
      return reason = "it closed the connection", false;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (wait_for(socket.handle(), POLLIN, deadline)) continue;
      return reason = "it did not answer in time", false;
    } else if (errno != EINTR) {
      return reason = system_text(errno), false;
    }
  }
  return true;
}

}  // namespace zeropp::detail
