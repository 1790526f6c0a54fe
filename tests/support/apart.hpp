// SPDX-License-Identifier: Apache-2.0
// How far apart two runs are whose bits may differ.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace test {

/// The greatest relative difference of losses and norms: the bytes of doubles, as `record` puts them.
inline double apart(const std::string& a, const std::string& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t at = 0; at < a.size(); at += sizeof(double)) {
    double x, y;
    std::memcpy(&x, a.data() + at, sizeof x);
    std::memcpy(&y, b.data() + at, sizeof y);
    worst = std::max(worst, std::abs(x - y) / std::abs(y));
  }
  return worst;
}

}  // namespace test
