// SPDX-License-Identifier: Apache-2.0
// SIGINT, SIGTERM and SIGHUP (the terminal was closed) while training: the first one asks to finish the step and save,
// a later one, whichever it is, ends at once. A signal that the program was started to ignore (nohup, or & in a script)
// stays ignored. Before and after training a signal ends the program as any other.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

/// Watches signals while it lives. Thread ranks hold one each: the first watches and the last gives back.
class Interrupt {
 public:
  /// `speaks`: whether this rank says on stderr that a signal has come.
  explicit Interrupt(bool speaks = true) {
    const std::lock_guard lock(mutex);
    speaks_for_all = holders > 0 ? speaks_for_all || speaks : speaks;
    if (holders++ > 0) return;
    asked = 0;
    for (auto& watched : all) {
      struct sigaction before {};
      ::sigaction(watched.number, nullptr, &before);
      watched.before = before.sa_handler;
      if (watched.before != SIG_IGN) std::signal(watched.number, handle);
    }
  }
  ~Interrupt() {
    const std::lock_guard lock(mutex);
    if (--holders > 0) return;
    for (auto& watched : all)
      if (watched.before != SIG_IGN) std::signal(watched.number, watched.before);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  /// The signal that came, 0 if none did.
  static int signal() { return static_cast<int>(asked); }
  /// The same on every rank: a signal reaches them at different moments, the largest number seen decides. A collective.
  static int signal(const Comm& comm) {
    const std::int32_t mine = signal();
    std::vector<std::int32_t> seen(static_cast<std::size_t>(comm.size()), mine);
    comm.host().all_gather(std::span<const std::int32_t>{&mine, 1}, std::span{seen});
    return *std::max_element(seen.begin(), seen.end());
  }
  /// Exit code of a program that such a signal ended after saving: 130 or 143.
  static int exit_code(int signal) { return 128 + signal; }

 private:
  static void handle(int number) {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    const auto milliseconds = now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
    if (asked) {
      if (milliseconds - asked_at < same_moment) return;
      std::signal(number, SIG_DFL);
      std::raise(number);  // ends when this handler returns
      return;
    }
    asked = number;
    asked_at = milliseconds;
    constexpr std::string_view words = "\nfinishing this step and saving; another signal ends at once\n";
    if (speaks_for_all && ::write(STDERR_FILENO, words.data(), words.size()) < 0) return;  // nobody is there to read
  }

  /// Milliseconds in which signals count as one: timeout sends two, a terminal and mpirun one each.
  static constexpr std::int64_t same_moment = 500;
  struct Watched {
    int number;
    void (*before)(int);
  };
  inline static Watched all[] = {{SIGINT, SIG_DFL}, {SIGTERM, SIG_DFL}, {SIGHUP, SIG_DFL}};
  inline static volatile std::sig_atomic_t asked = 0;
  inline static volatile std::int64_t asked_at = 0;
  inline static std::mutex mutex;
  inline static int holders = 0;
  inline static volatile bool speaks_for_all = false;
};

}  // namespace zeropp
