// SPDX-License-Identifier: Apache-2.0
// The output of a run: the step line, metrics that read back to the same bits, events, the console on pipes.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include <zeropp/app/log/console.hpp>
#include <zeropp/app/log/curve.hpp>
#include <zeropp/app/log/monitors.hpp>
#include <zeropp/base/random.hpp>

using namespace zeropp;

namespace {

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / text("zeropp-log-", ::getpid());
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
};

std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("the step line") {
  StepMetrics m{.step = 120,
                .loss = 2.3145,
                .grad_norm = 0.91,
                .learning_rate = 3e-4,
                .milliseconds = 84.2,
                .tokens_per_second = 48610,
                .mfu = 0.314,
                .bytes = static_cast<std::int64_t>(3.1 * (1 << 30))};
  CHECK(step_line(m, 2000, 80.0 * (1 << 30), 158) ==
        "step  120/2000 | loss 2.3145 | norm 0.91 | lr 3.0e-04 | 84.2 ms | 48,610 tok/s | mfu 31.4% | mem 3.1/80 GiB | "
        "eta 2m38s");
}

TEST_CASE("numbers as people read them") {
  CHECK(grouped(0) == "0");
  CHECK(grouped(999) == "999");
  CHECK(grouped(1000) == "1,000");
  CHECK(grouped(-1234567) == "-1,234,567");
  CHECK(bytes_text(1023) == "1023 B");
  CHECK(bytes_text(1536) == "1.5 KiB");
  CHECK(duration_text(0.4) == "0s");
  CHECK(duration_text(3725) == "1h02m");
  CHECK(duration_text(std::numeric_limits<double>::infinity()) == "?");
  CHECK(shell_word("a/b-1.txt") == "a/b-1.txt");
  CHECK(shell_word("it's") == "'it'\\''s'");
  CHECK(shell_word("") == "''");
}

TEST_CASE("metrics read back to the same bits") {
  const Random random(3, RandomPurpose::test);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    StepMetrics m{.step = static_cast<std::int64_t>(i),
                  .loss = random.normal(4 * i) * std::pow(10, random.normal(4 * i + 1) * 20),
                  .grad_norm = random.normal(4 * i + 2),
                  .learning_rate = 3e-4f};
    const auto json = nlohmann::json::parse(to_json(m));
    CHECK(json["loss"].get<double>() == m.loss);
    CHECK(json["grad_norm"].get<double>() == m.grad_norm);
    CHECK(json["learning_rate"].get<double>() == m.learning_rate);
    CHECK(json["step"] == m.step);
    CHECK(!json.contains("validation_loss"));
    CHECK(!json.contains("loss_scale"));
  }
  CHECK(nlohmann::json::parse(to_json({.loss = std::numeric_limits<double>::quiet_NaN()}))["loss"].is_null());
  CHECK(nlohmann::json::parse(to_json({.loss_scale = 65536}))["loss_scale"] == 65536);
}

TEST_CASE("a resumed run drops the lines after its step, and torn ones") {
  const Folder folder;
  const auto path = folder.file("metrics.jsonl");
  int warnings = 0;
  const auto warn = [&](const std::string&) { ++warnings; };
  {
    MetricsFile metrics(path, 0, warn);
    for (std::int64_t step = 1; step <= 5; ++step) metrics.write({.step = step});
  }
  std::ofstream(path, std::ios::app) << "{\"step\":2,\"lo";
  {
    MetricsFile metrics(path, 3, warn);
    metrics.write({.step = 4, .loss = 7});
  }
  const auto lines = lines_of(path);
  REQUIRE(lines.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) CHECK(nlohmann::json::parse(lines[i])["step"] == i + 1);
  CHECK(nlohmann::json::parse(lines[3])["loss"] == 7);
  { MetricsFile fresh(path, 0, warn); }
  CHECK(lines_of(path).empty());
  CHECK(warnings == 0);
}

TEST_CASE("what metrics held is never lost: appended to, or replaced by what was written beside") {
  const Folder folder;
  const auto path = folder.file("metrics.jsonl"), link = folder.file("link.jsonl");
  const auto warn = [](const std::string& words) { FAIL(words); };
  {
    MetricsFile metrics(path, 0, warn);
    for (std::int64_t step = 1; step <= 3; ++step) metrics.write({.step = step});
  }
  const auto inode = [&] {
    struct stat is {};
    REQUIRE(::stat(path.c_str(), &is) == 0);
    return is.st_ino;
  };
  const auto first = inode();
  { MetricsFile all(path, 3, warn); }
  CHECK(inode() == first);  // nothing to drop: not written
  CHECK(lines_of(path).size() == 3);
  std::filesystem::create_symlink(path, link);
  { MetricsFile some(link, 2, warn); }
  CHECK(inode() != first);
  CHECK(lines_of(path).size() == 2);
  CHECK(std::filesystem::is_symlink(link));
  CHECK(!std::filesystem::exists(path + ".new"));

  std::filesystem::create_directory(path + ".new");  // the place beside it cannot be written
  int warnings = 0;
  {
    MetricsFile none(path, 1, [&](const std::string&) { ++warnings; });
    none.write({.step = 9});
  }
  CHECK(warnings == 1);
  CHECK(lines_of(path).size() == 2);
}

TEST_CASE("a disk that is full costs one warning") {
  int warnings = 0;
  MetricsFile metrics("/dev/full", 0, [&](const std::string& words) {
    ++warnings;
    CHECK(words.find("cannot write /dev/full; training goes on") != std::string::npos);
  });
  for (int step = 1; step < 5; ++step) metrics.write({.step = step});
  CHECK(warnings == 1);
}

TEST_CASE("a pipe gets plain lines, and a reader that went away ends nothing") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  {
    Console console(true, ends[1]);
    CHECK(!console.terminal());
    console.line("one");
    console.step("two", 0.5, true);
    console.step("not kept", 0.6, false);
    console.heading("three");
  }
  char got[100] = {};
  CHECK(::read(ends[0], got, sizeof got - 1) == 14);
  CHECK(std::string(got) == "one\ntwo\nthree\n");
  ::close(ends[0]);
  const auto old = std::signal(SIGPIPE, SIG_IGN);
  Console console(true, ends[1]);
  console.line("nobody reads this");
  console.line("nor this");
  std::signal(SIGPIPE, old);
  ::close(ends[1]);
  Console silent(false, -1);
  silent.line("a rank that stays silent");
}

TEST_CASE("a terminal gets a bar that fits its window; one that is none gets lines") {
  const int other = ::posix_openpt(O_RDWR | O_NOCTTY);
  REQUIRE(other >= 0);
  REQUIRE(::grantpt(other) == 0);
  REQUIRE(::unlockpt(other) == 0);
  const int terminal = ::open(::ptsname(other), O_RDWR | O_NOCTTY);
  REQUIRE(terminal >= 0);
  const auto widen = [&](unsigned short columns) {
    const winsize size{24, columns, 0, 0};
    REQUIRE(::ioctl(terminal, TIOCSWINSZ, &size) == 0);
  };
  const auto printed = [&] {
    char got[1000] = {};
    return std::string(got, static_cast<std::size_t>(std::max<ssize_t>(0, ::read(other, got, sizeof got - 1))));
  };
  ::setenv("NO_COLOR", "1", 1);
  ::setenv("TERM", "xterm", 1);
  const std::string words(200, 'x');
  widen(80);
  {
    Console console(true, terminal);
    CHECK(console.terminal());
    for (const unsigned short columns : {80, 20, 5, 165}) {  // the window is followed
      widen(columns);
      console.step(words, 0.5, false);
      auto bar = printed();
      if (bar.starts_with("\r\033[K")) bar = bar.substr(4);
      CHECK(bar.size() == columns - 1u);
      CHECK(bar[0] == '[');
    }
    console.line("done");
    CHECK(printed() == "\r\033[Kdone\r\n");
  }
  for (const auto& [kind, columns] : {std::pair{"dumb", 80}, {"", 80}, {"xterm", 0}}) {  // 0: as mpirun's, to a file
    ::setenv("TERM", kind, 1);
    widen(static_cast<unsigned short>(columns));
    Console console(true, terminal);
    CHECK(!console.terminal());
    console.step("kept", 0.5, true);
    console.step("not", 0.6, false);
    console.heading("end");
    CHECK(printed() == "kept\r\nend\r\n");
  }
  ::setenv("TERM", "xterm", 1);
  ::unsetenv("NO_COLOR");
  widen(40);
  {
    Console console(true, terminal);
    console.step("loss", 0.25, false);
    CHECK(printed() == "\033[36m[==>      ]\033[0m 25% loss");
  }
  ::close(terminal);
  ::close(other);
}

TEST_CASE("a file gets the first step, a line each tenth, and the last") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  {
    Console console(true, ends[1]);
    Progress progress(console, 0, 1000, 1 << 30);
    for (std::int64_t step = 1; step <= 1000; ++step)
      progress.show({.step = step, .validation_loss = step % 500 ? -1.0 : 2.5});
  }
  ::close(ends[1]);
  std::string all;
  char got[1000];
  for (ssize_t n; (n = ::read(ends[0], got, sizeof got)) > 0;) all.append(got, static_cast<std::size_t>(n));
  ::close(ends[0]);
  CHECK(std::count(all.begin(), all.end(), '\n') == 12);
  CHECK(all.starts_with("step    1/1000 | "));
  CHECK(all.find("validation loss") == all.rfind("validation loss"));  // that of the last step comes from the whole text
}

TEST_CASE("the curve is a picture with both series, and leaves out what is not finite") {
  Curve curve;
  for (int step = 1; step <= 100; ++step) curve.add(step, 5 - 0.03 * step);
  curve.add(101, std::numeric_limits<double>::quiet_NaN());
  curve.add_validation(50, 3.7);
  const auto svg = curve.svg("a < b & c");
  CHECK(svg.starts_with("<svg"));
  CHECK(svg.find("a &lt; b &amp; c") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("<polyline class=\"m\"") != std::string::npos);
  CHECK(svg.find("<circle class=\"v\"") != std::string::npos);
  CHECK(Curve{}.svg("empty").ends_with("</svg>\n"));
}

namespace {

/// The scalars of an event file, read by its framing: each checksum is checked.
struct ReadEvents {
  struct Scalar {
    std::string tag;
    float value;
    std::uint64_t step;
    bool operator==(const Scalar&) const = default;
  };
  std::vector<Scalar> scalars;
  std::string version;
  std::uint64_t restart = 0;  ///< the step of a session that begins

  explicit ReadEvents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string all{std::istreambuf_iterator<char>(file), {}};
    for (std::size_t at = 0; at < all.size();) {
      const auto length = number<std::uint64_t>(all, at);
      CHECK(number<std::uint32_t>(all, at + 8) == masked_crc32c(std::string_view(all).substr(at, 8)));
      const auto content = all.substr(at + 12, length);
      CHECK(number<std::uint32_t>(all, at + 12 + length) == masked_crc32c(content));
      event(content);
      at += 16 + length;
    }
  }

 private:
  template <class T>
  static T number(const std::string& bytes, std::size_t at) {
    T value{};
    REQUIRE(at + sizeof value <= bytes.size());
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  }
  static std::uint64_t varint(const std::string& bytes, std::size_t& at) {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes.at(at++));
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }
  /// Calls f(number of the field, its varint or bytes).
  template <class F>
  static void fields(const std::string& bytes, F f) {
    for (std::size_t at = 0; at < bytes.size();) {
      const auto key = varint(bytes, at);
      std::uint64_t value = 0;
      std::string content;
      if (key % 8 == 0)
        value = varint(bytes, at);
      else {
        const auto size = key % 8 == 1 ? 8 : key % 8 == 5 ? 4 : varint(bytes, at);
        content = bytes.substr(at, size), at += size;
      }
      f(key / 8, value, content);
    }
  }
  void event(const std::string& bytes) {
    std::uint64_t step = 0;
    fields(bytes, [&](auto field, auto value, const std::string& content) {
      if (field == 1) CHECK(number<double>(content, 0) > 1.7e9);  // seconds since 1970
      if (field == 2) step = value;
      if (field == 3) version = content;
      if (field == 5) summary(content, step);
      if (field == 7) restart = step;
    });
  }
  void summary(const std::string& bytes, std::uint64_t step) {
    fields(bytes, [&](auto, auto, const std::string& one) {
      Scalar scalar{"", 0, step};
      fields(one, [&](auto field, auto, const std::string& content) {
        if (field == 1) scalar.tag = content;
        if (field == 2) scalar.value = number<float>(content, 0);
      });
      scalars.push_back(scalar);
    });
  }
};

}  // namespace

TEST_CASE("events are what TensorBoard reads, and CSV is laid out as DeepSpeed's") {
  CHECK(crc32c("123456789") == 0xE3069283u);  // RFC 3720
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62A8AB43u);
  const Folder folder;
  const auto warn = [](const std::string& words) { FAIL(words); };
  const MonitorFolders both{folder.file("events"), folder.file("csv")};
  {
    Monitors monitors{both, 0, warn};
    for (int step = 1; step <= 3; ++step)
      monitors.write({.step = step, .loss = 4.0 / step, .learning_rate = 1e-3 * step, .loss_scale = 1024}, 300 * step);
    EventFile again{folder.file("again"), 601, warn};
    again.scalar("loss", 0.5, 900);
    const ReadEvents resumed{again.path()};
    CHECK(resumed.restart == 601);
    CHECK(resumed.scalars == std::vector<ReadEvents::Scalar>{{"loss", 0.5f, 900}});
  }
  std::vector<std::string> files;
  for (auto& entry : std::filesystem::directory_iterator(folder.file("events"))) files.push_back(entry.path());
  REQUIRE(files.size() == 1);
  CHECK(files[0].find("/events.out.tfevents.") != std::string::npos);
  const ReadEvents events{files[0]};
  CHECK(events.version == "brain.Event:2");
  REQUIRE(events.scalars.size() == 9);
  CHECK(events.scalars[0] == ReadEvents::Scalar{"Train/Samples/train_loss", 4, 300});
  CHECK(events.scalars[4] == ReadEvents::Scalar{"Train/Samples/lr", 2e-3f, 600});
  CHECK(events.scalars[8] == ReadEvents::Scalar{"Train/Samples/loss_scale", 1024, 900});

  const auto csv = folder.file("csv/Train_Samples_lr.csv");
  CHECK(lines_of(csv) == std::vector<std::string>{"step,lr\r", "300,0.001\r", "600,0.002\r", "900,0.003\r"});
  Monitors{both, 600, warn}.write({.learning_rate = 7, .validation_loss = 2}, 900);  // resumed after 600 samples
  CHECK(lines_of(csv) == std::vector<std::string>{"step,lr\r", "300,0.001\r", "600,0.002\r", "900,7\r"});
  CHECK(lines_of(folder.file("csv/Train_Samples_eval_loss.csv")) ==
        std::vector<std::string>{"step,eval_loss\r", "900,2\r"});
  Monitors{both, 0, warn}.write({.learning_rate = 5}, 300);  // begun anew
  CHECK(lines_of(csv) == std::vector<std::string>{"step,lr\r", "300,5\r"});

  int warnings = 0;
  Monitors full{{"/dev/full/a", "/dev/full/b"}, 0, [&](const std::string&) { ++warnings; }};
  for (int step = 1; step < 4; ++step) full.write({.step = step}, step);
  CHECK(warnings == 2);
}

TEST_CASE("one line in so many steps, where that is said") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  {
    Console console(true, ends[1]);
    Progress progress{console, 0, 9, 1e9, 4};
    for (int step = 1; step <= 9; ++step) progress.show({.step = step});
  }
  ::close(ends[1]);
  char got[1000] = {};
  CHECK(::read(ends[0], got, sizeof got - 1) > 0);
  const std::string all = got;
  for (auto step : {"step 1/9", "step 4/9", "step 8/9", "step 9/9"}) CHECK(all.find(step) != std::string::npos);
  CHECK(std::count(all.begin(), all.end(), '\n') == 4);
  ::close(ends[0]);
}
