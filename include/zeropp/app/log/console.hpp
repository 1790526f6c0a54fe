// SPDX-License-Identifier: Apache-2.0
// The console of a run while it trains: on a terminal the newest step stands under a progress bar, cut to the width of
// the window; in a file or a pipe a line of each tenth of the run, and at least one a minute.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <zeropp/base/format.hpp>
#include <zeropp/app/log/metrics.hpp>
#include <zeropp/app/machine.hpp>

namespace zeropp {

/// `step  120/2000 | loss 2.3145 | norm 0.91 | lr 3.0e-04 | 84.2 ms | 48,610 tok/s | mfu 31.4% | mem 3.1/80 GiB | eta
/// 2m38s`
inline std::string step_line(const StepMetrics& m, std::int64_t steps, double memory_available, double eta_seconds) {
  const auto total = std::to_string(steps), step = std::to_string(m.step);
  const auto in_gib = [](double bytes) { return fixed(bytes / (1 << 30), bytes < 100.0 * (1 << 20) ? 3 : 1); };
  return "step " + std::string(total.size() > step.size() ? total.size() - step.size() : 0, ' ') + step + "/" + total +
         " | loss " + fixed(m.loss, 4) + " | norm " + fixed(m.grad_norm, 2) + " | lr " +
         scientific(m.learning_rate, 1) + " | " + fixed(m.milliseconds, 1) + " ms | " +
         grouped(static_cast<std::int64_t>(m.tokens_per_second)) + " tok/s | mfu " + fixed(100 * m.mfu, 1) +
         "% | mem " + in_gib(static_cast<double>(m.bytes)) + "/" + fixed(memory_available / (1 << 30), 0) +
         " GiB | eta " + duration_text(eta_seconds);
}

class Console {
 public:
  /// `active` is false on ranks that stay silent. A terminal that cannot go back in its line (TERM=dumb) or has no width
  /// (mpirun's, whose other end is a file) counts as a pipe.
  explicit Console(bool active, int descriptor = STDOUT_FILENO)
      : active_(active), descriptor_(descriptor), terminal_(active && ::isatty(descriptor) && columns() > 0) {
    const std::string_view kind = std::getenv("TERM") ? std::getenv("TERM") : "";
    if (kind.empty() || kind == "dumb") terminal_ = false;
    const char* no_color = std::getenv("NO_COLOR");
    color_ = terminal_ && !(no_color && *no_color);
  }
  ~Console() { clear_bar(); }
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  bool terminal() const { return terminal_; }

  void line(std::string_view words) {
    if (!active_) return;
    clear_bar();
    put(std::string(words) + "\n");
  }
  /// A line that stands out where there is color.
  void heading(std::string_view words) {
    line(color_ ? "\033[1m" + std::string(words) + "\033[0m" : std::string(words));
  }

  /// A step: a line of its own if `keep`; on a terminal a bar and the newest step stay in the last line.
  void step(const std::string& words, double done, bool keep) {
    if (!active_) return;
    if (terminal_) clear_bar();
    if (keep) put(words + "\n");
    if (!terminal_) return;
    const auto room = static_cast<std::size_t>(std::max(columns() - 1, 1));  // the window may have changed
    const auto cells = std::min<std::size_t>(40, room / 4);
    const auto full = static_cast<std::size_t>(done * static_cast<double>(cells));
    std::string bar(cells, ' ');
    for (std::size_t i = 0; i < cells && i <= full; ++i) bar[i] = i < full ? '=' : '>';
    auto line = ("[" + bar + "] " + fixed(100 * done, 0) + "% " + (keep ? "" : words)).substr(0, room);
    if (color_ && line.size() > cells + 2) line = "\033[36m" + line.insert(cells + 2, "\033[0m");
    put(line);
    bar_ = true;
  }

 private:
  /// Characters of a line of the terminal; 0 if it does not say.
  int columns() const {
    winsize size{};
    return ::ioctl(descriptor_, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
  }
  void clear_bar() {
    if (std::exchange(bar_, false)) put("\r\033[K");
  }
  /// A reader that went away (EPIPE) silences the console; the training goes on.
  void put(std::string_view bytes) {
    while (active_ && !bytes.empty()) {
      const auto written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) active_ = false;
      if (written > 0) bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  bool active_;
  int descriptor_;
  bool terminal_, color_ = false, bar_ = false;
};

/// The steps of a run on the console. The first and the last stay, and of the others one in so many, where that is said;
/// else about fifty in all on a terminal, and in a file one a tenth and one a minute.
class Progress {
 public:
  /// Steps (first, steps] are to come, in `memory` bytes. `every`: steps from one kept line to the next; 0: as
  /// the place asks.
  Progress(Console& console, std::int64_t first, std::int64_t steps, double memory = machine_memory(),
           std::int64_t every = 0)
      : console_(console),
        first_(first),
        steps_(steps),
        every_(every),
        memory_(memory) {}

  void show(const StepMetrics& m) {
    const double left =
        (steady_seconds() - begin_) / static_cast<double>(m.step - first_) * static_cast<double>(steps_ - m.step);
    const auto parts = console_.terminal() ? 50 : 10;
    const auto every = every_ > 0 ? every_ : std::max<std::int64_t>(1, steps_ / parts);
    const bool keep = m.step % every == 0 || m.step == first_ + 1 || m.step == steps_ ||
                      (every_ == 0 && !console_.terminal() && steady_seconds() - kept_ >= 60);
    if (keep) kept_ = steady_seconds();
    console_.step(step_line(m, steps_, memory_, left), static_cast<double>(m.step) / static_cast<double>(steps_), keep);
    if (m.validation_loss >= 0 && m.step < steps_)  // that of the whole held-out text follows the last step
      console_.line("validation loss " + fixed(m.validation_loss, 4));
  }

 private:
  Console& console_;
  std::int64_t first_, steps_, every_;
  double memory_;
  double begin_ = steady_seconds(), kept_ = begin_;
};

}  // namespace zeropp
