// SPDX-License-Identifier: Apache-2.0
// Errors and their sentences, sizes, element types, the exact split of a float, random numbers.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/base/version.hpp>

using namespace zeropp;

namespace {
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

/// Rounding to nearest even, written from the definition: the nearer of the two neighbours, at a tie the even one.
std::uint16_t nearest_even(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t below = bits >> 16, dropped = bits & 0xffffu;
  if (dropped < 0x8000u) return static_cast<std::uint16_t>(below);
  if (dropped > 0x8000u) return static_cast<std::uint16_t>(below + 1);
  return static_cast<std::uint16_t>(below % 2 == 0 ? below : below + 1);
}
}  // namespace

TEST_CASE("text joins strings, characters, numbers and truth values") {
  CHECK(text("a", 'b', std::string("c"), std::string_view("d"), 1, -2, 3u, true, false) == "abcd1-23truefalse");
  CHECK(text(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
  CHECK(text(std::numeric_limits<std::uint64_t>::max()) == "18446744073709551615");
  CHECK(text() == "");
}

TEST_CASE("text prints floating point in the shortest form that reads back to the same value") {
  CHECK(text(0.1) == "0.1");
  CHECK(text(0.1f) == "0.1");
  CHECK(text(1e300) == "1e+300");
  const Random random{3, RandomPurpose::test};
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const double value = random.normal(i) * std::pow(10, static_cast<double>(i % 600) - 300);
    CHECK(std::stod(text(value)) == value);
  }
}

TEST_CASE("an error carries its sentence, its place and its exit code") {
  auto check = [](const Error& error, ExitCode code) {
    CHECK(std::string(error.what()) == "asked for 3, found 2");
    CHECK(error.exit_code() == code);
    CHECK(std::string(error.where().file).ends_with("test_base.cpp"));
    CHECK(error.where().line > 0);
  };
  const auto sentence = text("asked for ", 3, ", found ", 2);
  check(Error(sentence), ExitCode::failure);
  check(ConfigError(sentence), ExitCode::usage);
  check(MemoryError(sentence), ExitCode::memory);
  check(DataError(sentence), ExitCode::data);
  check(CommError(sentence), ExitCode::communication);
  const int line = __LINE__ + 1;
  CHECK(Error(sentence).where().line == line);
  CHECK_THROWS_AS(throw DataError(sentence), std::runtime_error);
  CHECK(static_cast<int>(ExitCode::done) == 0);
}

TEST_CASE("products of sizes are checked") {
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  CHECK(checked_product(0, most) == 0);
  CHECK(checked_product(1, most) == most);
  CHECK(checked_product(3037000499, 3037000499) == 9223372030926249001);
  CHECK_THROWS_WITH_AS(checked_product(3037000500, 3037000500),
                       "a size of 3037000500 x 3037000500 does not fit in 63 bits; check the extents", ConfigError);
  CHECK_THROWS_WITH_AS(checked_product(-1, 4), "a size of -1 x 4 does not fit in 63 bits; check the extents",
                       ConfigError);
  CHECK_THROWS_AS(checked_product(most, 2), ConfigError);
  CHECK_THROWS_AS(checked_product(-1, -1), ConfigError);

  const auto count = [](std::vector<std::int64_t> extents) { return element_count(extents); };
  CHECK(count({}) == 1);
  CHECK(count({3, 0, 5}) == 0);
  CHECK(count({1 << 20, 1 << 20, 1 << 20}) == std::int64_t{1} << 60);
  CHECK_THROWS_AS(count({1 << 20, 1 << 20, 1 << 20, 16}), ConfigError);
  CHECK(shape_text(std::vector<std::int64_t>{}) == "[]");
  CHECK(shape_text(std::vector<std::int64_t>{2, 3, 4}) == "[2, 3, 4]");
  CHECK(ceil_div(7, 3) == 3);
  CHECK(ceil_div(6, 3) == 2);
  CHECK(ceil_div(0, 3) == 0);
  CHECK(round_up(7, 4) == 8);
}

TEST_CASE("element types know their size and name") {
  CHECK(size_of(dtype_of<float>) == sizeof(float));
  CHECK(size_of(dtype_of<const double>) == sizeof(double));
  CHECK(size_of(dtype_of<bf16>) == sizeof(bf16));
  CHECK(size_of(dtype_of<f16>) == sizeof(f16));
  CHECK(size_of(dtype_of<std::int64_t>) == 8);
  CHECK(size_of(dtype_of<std::byte>) == 1);
  CHECK(name_of(dtype_of<bf16>) == "bfloat16");
  CHECK(name_of(dtype_of<f16>) == "float16");
  CHECK(name_of(dtype_of<std::uint16_t>) == "uint16");
  CHECK(std::is_same_v<compute_t<bf16>, float>);
  CHECK(std::is_same_v<compute_t<f16>, float>);
  CHECK(std::is_same_v<compute_t<double>, double>);
  CHECK(std::is_trivially_copyable_v<bf16>);
  CHECK(std::is_trivially_copyable_v<f16>);
}

TEST_CASE("bf16: every pattern survives the way to float and back") {
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    bf16 value;
    value.bits = static_cast<std::uint16_t>(pattern);
    const bf16 back{static_cast<float>(value)};
    const bool nan = (pattern & 0x7fffu) > 0x7f80u;
    // A NaN stays a NaN of the same sign; it may become a quiet one.
    wrong += nan ? !std::isnan(static_cast<float>(back)) || (back.bits ^ pattern) > 0x40u : back.bits != pattern;
  }
  CHECK(wrong == 0);
}

TEST_CASE("bf16: rounds to nearest, ties to even, for every dropped half of many floats") {
  std::int64_t wrong = 0;
  for (std::uint32_t high = 0; high < 0x10000u; high += 97) {
    if ((high & 0x7f80u) == 0x7f80u) continue;
    for (std::uint32_t low = 0; low < 0x10000u; low += high % 3 ? 251 : 1) {
      const float value = float_of(high << 16 | low);
      wrong += bf16{value}.bits != nearest_even(value);
    }
    const float tie = float_of(high << 16 | 0x8000u);
    wrong += bf16{tie}.bits != nearest_even(tie) || bf16{tie}.bits % 2 != 0;
  }
  CHECK(wrong == 0);
  CHECK(std::isinf(static_cast<float>(bf16{std::numeric_limits<float>::max()})));
  CHECK(bf16{-0.0f}.bits == 0x8000u);
  CHECK(bf16{std::numeric_limits<float>::infinity()}.bits == 0x7f80u);
  for (std::uint32_t payload : {1u, 0x7fffu, 0x8000u, 0xffffu, 0x400000u, 0x7fffffu}) {
    CHECK(std::isnan(static_cast<float>(bf16{float_of(0x7f800000u | payload)})));
    CHECK(std::isnan(static_cast<float>(bf16{float_of(0xff800000u | payload)})));
  }
}

namespace {

/// The value of a pattern of binary16, by the words of IEEE 754.
double value_of_f16(std::uint32_t pattern) {
  const auto exponent = static_cast<int>(pattern >> 10 & 31u);
  const auto fraction = static_cast<double>(pattern & 0x3ffu) / 1024;
  const double sign = pattern & 0x8000u ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}
/// The nearest of all of them to a number, the even one of two: found by bisection over the positive patterns.
std::uint16_t nearest_f16(float number) {
  const double x = std::abs(static_cast<double>(number));
  std::uint32_t low = 0, high = 0x7c00u;  // value(low) <= x < value(high), infinity standing for 65536
  const auto at = [](std::uint32_t pattern) { return pattern == 0x7c00u ? 65536.0 : value_of_f16(pattern); };
  if (x >= 65536)
    low = 0x7c00u;
  else
    while (high - low > 1) (at((low + high) / 2) <= x ? low : high) = (low + high) / 2;
  if (low < 0x7c00u) {
    const double below = x - at(low), above = at(high) - x;
    if (above < below || (above == below && low % 2)) low = high;
  }
  return static_cast<std::uint16_t>(low | (std::signbit(number) ? 0x8000u : 0u));
}

}  // namespace

TEST_CASE("f16: every pattern is the number of IEEE 754, and survives the way to float and back") {
  int wrong = 0;
  for (std::uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    f16 value;
    value.bits = static_cast<std::uint16_t>(pattern);
    const float wide = value;
    const f16 back{wide};
    const bool nan = (pattern & 0x7fffu) > 0x7c00u;
    wrong += nan ? !std::isnan(wide) || (back.bits ^ pattern) > 0x200u
                 : static_cast<double>(wide) != value_of_f16(pattern) || back.bits != pattern;
  }
  CHECK(wrong == 0);
  static_assert(f16(1.0f).bits == 0x3c00u && static_cast<float>(f16(-0x1p-24f)) == -0x1p-24f);
}

TEST_CASE("f16: rounds to nearest, ties to even, through subnormals and up to infinity") {
  std::int64_t wrong = 0, ties = 0;
  const auto check = [&](std::uint32_t bits) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return;
    wrong += f16{float_of(bits)}.bits != nearest_f16(float_of(bits));
  };
  for (std::uint32_t pattern = 0; pattern < 0x7c00u; ++pattern) {  // the middles between neighbours, and beside them
    const double upper = pattern == 0x7bffu ? 65536.0 : value_of_f16(pattern + 1);
    const auto middle = static_cast<float>((value_of_f16(pattern) + upper) / 2);
    for (std::uint32_t sign : {0u, 0x80000000u})
      for (std::uint32_t beside : {0u, 1u, 2u}) check((bits_of(middle) + beside - 1) | sign);
    wrong += f16{middle}.bits != pattern + pattern % 2;
    ++ties;
  }
  std::uint32_t bits = 0;
  for (int i = 0; i < (1 << 21); ++i) check(bits += 2654435761u);
  CHECK(wrong == 0);
  CHECK(ties == 0x7c00);
  CHECK(f16{65519.996f}.bits == 0x7bffu);
  CHECK(f16{65520.0f}.bits == 0x7c00u);
  CHECK(f16{-std::numeric_limits<float>::max()}.bits == 0xfc00u);
  CHECK(f16{std::numeric_limits<float>::infinity()}.bits == 0x7c00u);
  CHECK(f16{-0.0f}.bits == 0x8000u);
  CHECK(f16{0x1p-25f}.bits == 0);  // a tie between 0 and the least
  CHECK(f16{0x1.8p-25f}.bits == 1);
  for (std::uint32_t payload : {1u, 0x1fffu, 0x2000u, 0x400000u, 0x7fffffu}) {
    CHECK(std::isnan(static_cast<float>(f16{float_of(0x7f800000u | payload)})));
    CHECK(std::isnan(static_cast<float>(f16{float_of(0xff800000u | payload)})));
  }
}

TEST_CASE("WholeMaster: the weight is the rounded master, which is kept") {
  for (float master : {1.0001f, -65520.0f, 1e-9f, 3.0f}) {
    const auto split = WholeMaster::from(master);
    CHECK(split.weight.bits == f16(master).bits);
    CHECK(split.master() == master);
  }
}

TEST_CASE("bf16: stochastic rounding goes up for as many of its 65,536 random values as the fraction has") {
  for (std::uint32_t high : {0x0000u, 0x8000u, 0x3f80u, 0xbf80u, 0x3fffu, 0x7f7fu, 0x0001u, 0x807fu})
    for (std::uint32_t low : {0u, 1u, 77u, 0x7fffu, 0x8000u, 0xffffu}) {
      std::uint32_t up = 0, other = 0;
      for (std::uint32_t random = 0; random < 0x10000u; ++random) {
        const auto bits = rounded_stochastically(float_of(high << 16 | low), static_cast<std::uint16_t>(random)).bits;
        up += bits == high + 1;
        other += bits != high && bits != high + 1;
      }
      CHECK(up == low);
      CHECK(other == 0);
    }
  const auto infinity = std::numeric_limits<float>::infinity();
  for (std::uint16_t random : {0, 1, 0x8000, 0xffff}) {
    CHECK(static_cast<float>(rounded_stochastically(-infinity, random)) == -infinity);
    for (std::uint32_t payload : {1u, 0xffffu, 0x7fffffu})
      CHECK(std::isnan(static_cast<float>(rounded_stochastically(float_of(0xff800000u | payload), random))));
  }
}

TEST_CASE("SplitMaster: weight and remainder give back every master, bit for bit") {
  std::int64_t wrong = 0, far = 0;
  auto check = [&](std::uint32_t pattern) {
    const auto split = SplitMaster::from(float_of(pattern));
    wrong += bits_of(split.master()) != pattern;
    // weight + remainder is the master, the remainder in [-32768, 32767]: nearest, ties away from zero
    const auto rounded = static_cast<std::uint16_t>((pattern >> 16) + ((pattern & 0x8000u) != 0));
    far += split.weight.bits != rounded;
  };
  // every remainder, for 512 weights spread over all patterns, with those of zero, infinity and NaN among them
  for (std::uint32_t i = 0; i < 512; ++i)
    for (std::uint32_t low = 0; low < 0x10000u; ++low) check((i * 128 + i % 128) << 16 | low);
  for (std::uint32_t high : {0x0000u, 0x8000u, 0x7f7fu, 0x7f80u, 0x7fffu, 0xff80u, 0xffffu, 0x3f80u, 0x0001u, 0x807fu})
    for (std::uint32_t low = 0; low < 0x10000u; ++low) check(high << 16 | low);
  // and a stride that is coprime to 2^32 through everything
  std::uint32_t pattern = 0;
  for (int i = 0; i < (1 << 24); ++i) check(pattern += 2654435761u);
  CHECK(wrong == 0);
  CHECK(far == 0);
}

TEST_CASE("SplitMaster: the weight is the bf16 of the master, but at a tie") {
  std::int64_t wrong = 0;
  for (std::uint32_t i = 0; i < (1u << 20); ++i) {
    const std::uint32_t pattern = i * 4093u;
    if ((pattern & 0x7f800000u) == 0x7f800000u || (pattern & 0xffffu) == 0x8000u) continue;
    wrong += SplitMaster::from(float_of(pattern)).weight.bits != bf16{float_of(pattern)}.bits;
  }
  CHECK(wrong == 0);
}

TEST_CASE("Philox gives the known answers of its authors") {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(detail::philox({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const auto ones = 0xffffffffu;
  CHECK(detail::philox({ones, ones, ones, ones}, {ones, ones}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(detail::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random numbers depend on each of their coordinates and on nothing else") {
  const Random first{1, RandomPurpose::dropout, 2, 3};
  const auto late = first.bits(1000);
  CHECK(Random{1, RandomPurpose::dropout, 2, 3}.bits(1000) == late);
  CHECK(Random{2, RandomPurpose::dropout, 2, 3}.bits(1000) != late);
  CHECK(Random{1, RandomPurpose::data, 2, 3}.bits(1000) != late);
  CHECK(Random{1, RandomPurpose::dropout, 3, 3}.bits(1000) != late);
  CHECK(Random{1, RandomPurpose::dropout, 2, 4}.bits(1000) != late);
  CHECK(Random{1 + (1ull << 32), RandomPurpose::dropout, 2, 3}.bits(1000) != late);
  CHECK(Random{1, RandomPurpose::dropout, 2 + (1ull << 32), 3}.bits(1000) != late);
  CHECK(Random{1, RandomPurpose::dropout, 2, 3 + (1ull << 32)}.bits(1000) != late);
  CHECK(first.bits(1000 + (4ull << 32)) != late);
  for (std::uint64_t i = 0; i < 8; ++i) CHECK(first.bits(i) == first.block(i / 4)[i % 4]);
  static_assert(hash_of("") == 0xcbf29ce484222325ull);
  static_assert(hash_of("a") == 0xaf63dc4c8601ec8cull);
  static_assert(hash_of("foobar") == 0x85944171f73967e8ull);
}

TEST_CASE("uniform numbers fill [0, 1), normal numbers have the moments of the normal distribution") {
  const Random random{42, RandomPurpose::test};
  const int count = 1 << 20;
  double sum = 0, square = 0, least = 1, most = 0;
  double moments[4] = {};
  int beyond_two = 0;
  double neighbours = 0, previous = 0;
  for (int i = 0; i < count; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    const double u = random.uniform(index);
    sum += u, square += u * u, least = std::min(least, u), most = std::max(most, u);
    const double n = random.normal(index);
    for (double power = n, *m = moments; m != moments + 4; ++m, power *= n) *m += power;
    beyond_two += std::abs(n) > 2;
    neighbours += n * previous;
    previous = n;
  }
  // five standard errors each
  const double root = std::sqrt(count);
  CHECK(least >= 0);
  CHECK(most < 1);
  CHECK(std::abs(sum / count - 0.5) < 5 * std::sqrt(1.0 / 12) / root);
  CHECK(std::abs(square / count - 1.0 / 3) < 5 * std::sqrt(4.0 / 45) / root);
  CHECK(std::abs(moments[0] / count) < 5 / root);
  CHECK(std::abs(moments[1] / count - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(moments[2] / count) < 5 * std::sqrt(15.0) / root);
  CHECK(std::abs(moments[3] / count - 3) < 5 * std::sqrt(96.0) / root);
  CHECK(std::abs(neighbours / count) < 5 / root);
  CHECK(std::abs(static_cast<double>(beyond_two) / count - 0.0455003) < 5 * std::sqrt(0.0455 * 0.9545) / root);
}
