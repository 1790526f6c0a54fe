// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <limits>
#include <vector>

#include <zeropp/train/schedule.hpp>

using namespace zeropp;

TEST_CASE("warm-up, then the shape, down to the floor at the last step and after it") {
  const Cosine cosine{.peak = 1, .floor = 0.1f, .warmup = 4, .steps = 15};
  CHECK(cosine(0) == 0.25f);
  CHECK(cosine(3) == 1);
  CHECK(cosine(4) == 1);
  CHECK(cosine(9) == doctest::Approx(0.55));
  CHECK(cosine(14) == doctest::Approx(0.1));
  CHECK(cosine(1000) == doctest::Approx(0.1));
  const LinearDecay linear{.peak = 1, .floor = 0, .warmup = 0, .steps = 11};
  CHECK(linear(0) == 1);
  CHECK(linear(5) == doctest::Approx(0.5));
  CHECK(linear(10) == 0);
  const Constant constant{.peak = 2, .warmup = 2, .steps = 5};
  CHECK(constant(0) == 1);
  CHECK(constant(4) == 2);
}

TEST_CASE("walked, it gives steps and rates, from the first one on") {
  std::vector<std::int64_t> steps;
  const LinearDecay schedule{.peak = 1, .steps = 6, .first = 2};
  for (auto [step, rate] : schedule) {
    steps.push_back(step);
    CHECK(rate == schedule(step));
  }
  CHECK(steps == std::vector<std::int64_t>{2, 3, 4, 5});
  for ([[maybe_unused]] auto step : LinearDecay{.peak = 1, .steps = 3, .first = 7}) FAIL("nothing is left to do");
}

TEST_CASE("what cannot be is refused") {
  CHECK_THROWS_WITH_AS((Cosine{.peak = -1, .steps = 5}(0)), doctest::Contains("must be at least 0, got -1"),
                       ConfigError);
  CHECK_THROWS_AS((Cosine{.peak = std::numeric_limits<float>::quiet_NaN(), .steps = 5}(0)), ConfigError);
  CHECK_THROWS_WITH_AS((Cosine{.peak = 1, .floor = 2, .steps = 5}(0)),
                       doctest::Contains("from 0 to the peak of 1, got 2"), ConfigError);
  CHECK_THROWS_WITH_AS((Cosine{.peak = 1, .warmup = 6, .steps = 5}.begin()),
                       doctest::Contains("6 steps does not fit a training of 5"), ConfigError);
}
