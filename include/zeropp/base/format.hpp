// SPDX-License-Identifier: Apache-2.0
// Numbers as people read them: fixed digits, groups of thousands, bytes, durations.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace zeropp {

/// "3.1416" for (π, 4).
inline std::string fixed(double value, int digits) {
  char out[400];
  return {out, std::to_chars(out, out + sizeof out, value, std::chars_format::fixed, digits).ptr};
}

/// "3.0e-04"
inline std::string scientific(double value, int digits) {
  char out[64];
  return {out, std::to_chars(out, out + sizeof out, value, std::chars_format::scientific, digits).ptr};
}

/// "48,610"
inline std::string grouped(std::int64_t value) {
  auto out = std::to_string(value);
  for (auto at = static_cast<std::int64_t>(out.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    out.insert(static_cast<std::size_t>(at), 1, ',');
  return out;
}

/// "1 rank", "1,000 ranks".
inline std::string counted(std::int64_t number, const std::string& word) {
  return grouped(number) + " " + word + (number == 1 ? "" : "s");
}

/// "1.5 MiB"
inline std::string bytes_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  while (std::abs(bytes) >= 1024 && unit < 5) bytes /= 1024, ++unit;
  return fixed(bytes, unit && bytes < 100 ? 1 : 0) + " " + units[unit];
}

/// "2m38s", "41s", "3h05m"
inline std::string duration_text(double seconds) {
  if (!(seconds < 1e9)) return "?";
  const auto s = static_cast<std::int64_t>(std::lround(std::max(seconds, 0.0)));
  const auto two = [](std::int64_t n) { return (n < 10 ? "0" : "") + std::to_string(n); };
  if (s >= 3600) return std::to_string(s / 3600) + "h" + two(s / 60 % 60) + "m";
  if (s >= 60) return std::to_string(s / 60) + "m" + two(s % 60) + "s";
  return std::to_string(s) + "s";
}

/// Text as the content of an XML element.
inline std::string xml_text(const std::string& plain) {
  std::string out;
  for (char c : plain) c == '<' ? out += "&lt;" : c == '&' ? out += "&amp;" : out += c;
  return out;
}

/// A word as a shell reads it back: quoted where it must be.
inline std::string shell_word(const std::string& word) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_-./=,:+").find(c) != std::string_view::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string quoted = "'";
  for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace zeropp
