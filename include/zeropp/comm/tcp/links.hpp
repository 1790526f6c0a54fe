// SPDX-License-Identifier: Apache-2.0
// The connections of one process to all other ranks. A thread moves the bytes in both directions, whatever the rank is
// doing: so ranks that all send at once cannot lock each other, a send goes on while its rank computes, and a rank that
// dies is known at once, by its closed connection. The first failure ends all: it is told to every rank.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include <zeropp/comm/tcp/frames.hpp>

namespace zeropp::detail {

/// The failure that ended a rank, and so all ranks.
struct TcpFailure {
  std::string sentence;
  int code;  ///< exit code
};

class TcpLinks {
 public:
  /// sockets[r] is connected with rank r; that of this rank is empty.
  TcpLinks(int rank, std::vector<Socket> sockets, std::chrono::nanoseconds limit)
      : rank_(rank),
        limit_(checked_limit(limit)),
        links_(sockets.size()),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!wake_) throw CommError(text("an event for the connections: ", system_text(errno)));
    for (std::size_t r = 0; r < links_.size(); ++r) links_[r].socket = std::move(sockets[r]);
    mover_ = std::thread([this] { move(); });
  }
  TcpLinks(const TcpLinks&) = delete;
  TcpLinks& operator=(const TcpLinks&) = delete;
  /// Says the end of the program, unless it is said or a failure is, and waits a moment for the others to take it.
  ~TcpLinks() {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_ && !said_end_)
        for (auto& link : links_) link.post({.call = end_of_program_call()}, {});
      closing_ = Clock::now() + std::chrono::seconds(1);
    }
    wake();
    mover_.join();
  }

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(links_.size()); }
  std::chrono::nanoseconds limit() const { return limit_; }
  std::uint64_t new_group() {  // unique in the run: made by one member, who tells the others
    return static_cast<std::uint64_t>(rank_ + 1) << 32 | ++groups_;
  }

  static Fingerprint end_of_program_call() {
    Fingerprint call{};
    call.kind = Fingerprint::kind_of_end;
    return call;
  }

  /// Begins to send to rank `to`. Bytes in `parts` must stay until wait() has returned or thrown; `own` is kept here.
  void post(int to, const TcpFrame& frame, TcpParts parts, std::vector<std::byte> own = {}) {
    bool more = true;
    {
      const std::lock_guard lock(mutex_);
      auto& link = this->link(to);
      if (to == rank_) return keep(frame, own);
      if (!link.socket || failure_) return;
      if (frame.kind == TcpKind::meeting && frame.call.kind == Fingerprint::kind_of_end) said_end_ = true;
      link.post(frame, std::move(parts), std::move(own));
      int error = 0;
      link.write(error);  // where the connection is lost, the thread finds it, after what came before
      more = !link.flushed();
    }
    if (more) wake();
  }

  /// The first arrival from rank `from`: of meetings or of messages of a group. Only after wait() for it.
  TcpArrival take(int from, std::uint64_t group, TcpKind kind) {
    const std::lock_guard lock(mutex_);
    auto& box = link(from).inboxes[group];
    auto& queue = kind == TcpKind::meeting ? box.meetings : box.messages;
    auto arrival = std::move(queue.front());
    queue.pop_front();
    return arrival;
  }

  /// Waits until something has come from each of `from`, and what was posted to each of `to` is sent. Throws CommError
  /// where a rank has failed, has ended without it, or gives no sign within the limit.
  void wait(const std::string& call, std::uint64_t group, TcpKind kind, std::span<const int> from,
            std::span<const int> to) {
    std::unique_lock lock(mutex_);
    auto since = Clock::now();
    std::uint64_t seen = 0;
    for (;;) {
      std::vector<int> late;
      std::uint64_t signs = 1;
      const auto look = [&](int r, bool there) {
        if (there) return;
        late.push_back(r);
        signs += link(r).activity;
      };
      for (const int r : from) look(r, arrived(r, group, kind));
      if (late.empty())
        for (const int r : to) look(r, link(r).flushed());
      if (late.empty()) return;
      if (failure_) throw_failure(call);
      for (const int r : late)
        if (link(r).ended && !arrived(r, group, kind)) throw CommError(ended_text(call, kind, r));
      const auto now = Clock::now();
      if (signs != seen) seen = signs, since = now;  // slow is not hung: the limit is on silence
      if (now - since >= limit_)
        throw CommError(text("rank ", rank_, " waited ", seconds_text(limit_), " in ", call, " for ", ranks_text(late),
                             ", which did not answer"));
      changed_.wait_until(lock, since + limit_);
    }
  }

  /// Throws where a failure is known already.
  void expect_no_failure(const std::string& call) {
    const std::lock_guard lock(mutex_);
    if (failure_) throw_failure(call);
  }
  /// The failure that ended this rank or another one, or nothing.
  std::optional<TcpFailure> failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  /// Tells all ranks, unless a failure is told already, that this one ends, and why. Nothing of the caller's memory is
  /// read from then on.
  void fail(const std::string& sentence, int code) noexcept try {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = TcpFailure{sentence, code};
      if (std::exchange(told_, true)) return;
      for (auto& link : links_) {
        link.withdraw();
        TcpFrame frame{.kind = TcpKind::failure};
        frame.call.count = failure_->code;
        const auto words = std::as_bytes(std::span{failure_->sentence});
        if (link.socket) link.post(frame, {}, {words.begin(), words.end()});
      }
    }
    changed_.notify_all();
    wake();
  } catch (const std::exception&) {  // no memory for the words: the closed connections tell
  }

 private:
  using Clock = std::chrono::steady_clock;

  TcpConnection& link(int rank) { return links_[static_cast<std::size_t>(rank)]; }
  bool arrived(int from, std::uint64_t group, TcpKind kind) {
    const auto& box = link(from).inboxes[group];
    return !(kind == TcpKind::meeting ? box.meetings : box.messages).empty();
  }
  std::string ended_text(const std::string& call, TcpKind kind, int other) const {
    return kind == TcpKind::message ? text("rank ", rank_, " calls ", call, ", which ended without sending it")
                                    : differ_text(rank_, call, other, end_of_program);
  }
  [[noreturn]] void throw_failure(const std::string& call) const {
    throw CommError(text("rank ", rank_, " in ", call, ": ended because ", failure_->sentence));
  }
  void wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_.handle(), &one, sizeof one);
  }

  /// A message of this rank to itself.
  void keep(TcpFrame frame, std::span<const std::byte> data) {
    frame.bytes = static_cast<std::int64_t>(data.size());
    TcpArrival arrival{frame, std::make_unique_for_overwrite<std::byte[]>(data.size())};
    std::copy(data.begin(), data.end(), arrival.data.get());
    link(rank_).inboxes[frame.group].messages.push_back(std::move(arrival));
  }
  /// The connection to rank r is gone.
  void lose(int r, int error) {
    auto& link = this->link(r);
    link.socket.close();
    link.forget();
    if (link.ended || failure_ || closing_) return;
    failure_ = TcpFailure{
        text("rank ", r, " is gone: its connection was ",
             error == 0 || error == ECONNRESET || error == EPIPE ? "closed" : "lost (" + system_text(error) + ")",
             " without a word; it was killed or its host failed, and its own output may say why"),
        static_cast<int>(ExitCode::communication)};
  }

  void arrive(int from, TcpArrival&& arrival) {
    auto& link = this->link(from);
    const auto& frame = arrival.frame;
    if (frame.kind == TcpKind::failure) {
      if (!failure_ && !closing_)
        failure_ = TcpFailure{
            std::string(reinterpret_cast<const char*>(arrival.data.get()), static_cast<std::size_t>(frame.bytes)),
            static_cast<int>(frame.call.count)};
      link.ended = true;
      return;
    }
    if (frame.call.kind == Fingerprint::kind_of_end) link.ended = true;
    if (failure_ || closing_) return;
    auto& box = link.inboxes[frame.group];
    (frame.kind == TcpKind::message ? box.messages : box.meetings).push_back(std::move(arrival));
  }

  void serve(int r, short events) {
    auto& link = this->link(r);
    int error = 0;
    try {  // reads first: a rank that ends has said why
      if (link.socket && (events & (POLLIN | POLLHUP | POLLERR)) &&
          !link.read(error, [&](TcpArrival&& arrival) { arrive(r, std::move(arrival)); }))
        lose(r, error);
      if (link.socket && !link.write(error)) lose(r, error);
    } catch (const std::exception& e) {
      if (!failure_)
        failure_ = TcpFailure{text("rank ", rank_, " cannot receive from rank ", r, ": ", e.what()),
                              static_cast<int>(ExitCode::communication)};
      link.socket.close();
      link.forget();
    }
  }

  /// The thread that moves the bytes.
  void move() {
    std::vector<pollfd> polled;
    for (;;) {
      bool closing = false, open = false;
      polled.assign(1, {wake_.handle(), POLLIN, 0});
      {
        const std::lock_guard lock(mutex_);
        closing = closing_.has_value();
        for (auto& link : links_) {
          const auto events = POLLIN | (link.flushed() ? 0 : POLLOUT);
          // All said: the other end reads that nothing more comes, and closes as well.
          if (closing && link.socket && link.flushed()) ::shutdown(link.socket.handle(), SHUT_WR);
          open |= static_cast<bool>(link.socket);
          polled.push_back({link.socket.handle(), static_cast<short>(events), 0});
        }
        if (closing && (!open || Clock::now() > *closing_)) return;
      }
      ::poll(polled.data(), polled.size(), closing ? 20 : -1);
      {
        const std::lock_guard lock(mutex_);
        std::uint64_t number = 0;
        while (::read(wake_.handle(), &number, sizeof number) > 0) {
        }
        for (int r = 0; r < size(); ++r)
          if (r != rank_) serve(r, polled[static_cast<std::size_t>(r) + 1].revents);
      }
      changed_.notify_all();
    }
  }

  const int rank_;
  const std::chrono::nanoseconds limit_;
  std::mutex mutex_;  // guards all that follows but wake_ and mover_
  std::condition_variable changed_;
  std::vector<TcpConnection> links_;
  std::optional<TcpFailure> failure_;
  bool told_ = false, said_end_ = false;
  std::optional<Deadline> closing_;
  std::atomic<std::uint32_t> groups_{0};
  Socket wake_;
  std::thread mover_;
};

}  // namespace zeropp::detail
