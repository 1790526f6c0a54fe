// SPDX-License-Identifier: Apache-2.0
// SIGINT, SIGTERM and SIGHUP (the terminal was closed) while training: the first one asks to finish the step and save, a
// second one ends at once. A reader of our output that went away (SIGPIPE) ends nothing.
#pragma once

#include <csignal>

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

  /// The signal that came, 0 if none did. Ranks see it at different moments: agree on it over the communicator.
  static int signal() { return static_cast<int>(asked); }
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
