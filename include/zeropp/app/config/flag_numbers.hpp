// SPDX-License-Identifier: Apache-2.0
// Numbers as flags are given them: what is no number, or does not fit, is refused and never cut to the nearest that
// does.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// The fault of `word` as a finite number; empty: none.
inline std::string wrong_number(const std::string& word) {
  double value = 0;
  const auto* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  if (word.empty() || stop != end || error != std::errc() || !std::isfinite(value))
    return text("must be a number, got ", word);
  return "";
}

/// Rewrites `word` in digits if it is a whole number of Integer ("1e5" is one); else says what is wrong with it.
template <class Integer>
std::string wrong_integer(std::string& word) {
  const auto fits = [&](auto value, const char* from) {
    const auto* end = word.data() + word.size();
    const auto [stop, error] = std::from_chars(from, end, value);
    return stop == end && error == std::errc();
  };
  if (!word.empty() && fits(Integer{}, word.data())) return "";
  constexpr auto low = std::numeric_limits<Integer>::min(), high = std::numeric_limits<Integer>::max();
  double value = 0;
  const auto* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  if (stop == end && error == std::errc() && value == std::floor(value) && std::abs(value) < 0x1p53 &&
      value >= static_cast<double>(low)) {
    word = text(static_cast<Integer>(value));
    return "";
  }
  return text("must be a whole number from ", low, " to ", high, ", got ", word);
}

}  // namespace zeropp
