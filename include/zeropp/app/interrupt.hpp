// SPDX-License-Identifier: Apache-2.0
// SIGINT, SIGTERM and SIGHUP (the terminal was closed) while training: the first one asks to finish the step and save,
// a second one ends at once. A reader of our output that went away (SIGPIPE) ends nothing.
#pragma once

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

class Interrupt {
 public:
  Interrupt() {
    asked = 0;
    for (auto& old : old_) old.handler = std::signal(old.number, old.number == SIGPIPE ? SIG_IGN : handle);
  }
  ~Interrupt() {
    for (auto& old : old_) std::signal(old.number, old.handler);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  /// The signal that came, 0 if none did.
  static int signal() { return static_cast<int>(asked); }
  /// The same on every rank: a signal reaches them at different moments, the largest number seen decides. A collective.
  static int signal(const Comm& comm) {
    const std::int32_t mine = signal();
    std::vector<std::int32_t> all(static_cast<std::size_t>(comm.size()), mine);
    comm.host().all_gather(std::span<const std::int32_t>{&mine, 1}, std::span{all});
    return *std::max_element(all.begin(), all.end());
  }
  /// Exit code of a program that such a signal ended after saving: 130 or 143.
  static int exit_code(int signal) { return 128 + signal; }

 private:
  static void handle(int number) {
    asked = number;
    std::signal(number, SIG_DFL);
  }

  struct Old {
    int number;
    void (*handler)(int) = SIG_DFL;
  };
  inline static volatile std::sig_atomic_t asked = 0;
  Old old_[4] = {{SIGINT}, {SIGTERM}, {SIGHUP}, {SIGPIPE}};
};

}  // namespace zeropp
