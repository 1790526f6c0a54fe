// SPDX-License-Identifier: Apache-2.0
// Kernels element by element and row by row, against their formulas in double: odd sizes, none, more than a thread
// takes at a time; the same bits on one thread and three.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/norm.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/rope.hpp>
#include <zeropp/kernels/vector.hpp>

using namespace zeropp;
using namespace zeropp::kernels;

namespace {

template <class T>
std::vector<T> noise(std::size_t n, std::uint64_t seed, double scale = 1) {
  const Random random(seed, RandomPurpose::test);
  std::vector<T> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<float>(scale * (2 * random.uniform(i) - 1)));
  return out;
}
template <class T>
double value(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}
/// Rounding of the result, and a few of the compute type on the way.
template <class T>
constexpr double tolerance() {
  return std::is_same_v<T, bf16>    ? 1.0 / 128
         : std::is_same_v<T, f16>   ? 1.0 / 1024
         : std::is_same_v<T, float> ? 4e-6
                                    : 1e-12;
}
template <class T, class F>
void expect(const std::vector<T>& got, F reference) {
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double wanted = reference(i);
    worst = std::max(worst, std::abs(value(got[i]) - wanted) / std::max(1.0, std::abs(wanted)));
  }
  CHECK(worst <= tolerance<T>());
}
/// Runs on one thread and on three: the same bits.
template <class T, class F>
std::vector<T> on_threads(std::vector<T> out, F kernel) {
  auto other = out;
  Cpu one, three{{.threads = 3}};
  kernel(one, out);
  kernel(three, other);
  if (!out.empty()) CHECK(std::memcmp(out.data(), other.data(), out.size() * sizeof(T)) == 0);
  return out;
}

double gelu_of(double x) { return 0.5 * x * (1 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))); }
double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
template <class F>
double slope(F f, double x) {
  constexpr double h = 1e-5;
  return (f(x + h) - f(x - h)) / (2 * h);
}

constexpr std::size_t sizes[] = {0, 1, 7, 33, 16384, 50001};

}  // namespace

TEST_CASE_TEMPLATE("elementwise", T, float, double, bf16, f16) {
  for (auto n : sizes) {
    CAPTURE(n);
    auto a = noise<T>(n, 1, 4), b = noise<T>(n, 2, 4);
    const std::vector<T> out(n);
    const auto both = [&](std::size_t i) { return std::pair{value(a[i]), value(b[i])}; };
    expect(on_threads(out, [&](auto& on, auto& y) { add(on, std::span{a}, std::span{b}, std::span{y}); }),
           [&](std::size_t i) { return value(a[i]) + value(b[i]); });
    expect(on_threads(out, [&](auto& on, auto& y) { gelu_forward(on, std::span{a}, std::span{y}); }),
           [&](std::size_t i) { return gelu_of(value(a[i])); });
    expect(on_threads(out, [&](auto& on, auto& y) { swiglu_forward(on, std::span{a}, std::span{b}, std::span{y}); }),
           [&](std::size_t i) {
             const auto [g, u] = both(i);
             return g * sigmoid_of(g) * u;
           });
    expect(on_threads(a, [](auto& on, auto& y) { scale(on, std::span{y}, compute_t<T>(0.25)); }),
           [&](std::size_t i) { return value(a[i]) / 4; });
    expect(on_threads(out, [](auto& on, auto& y) { fill(on, std::span{y}, static_cast<T>(3.0f)); }),
           [](std::size_t) { return 3.0; });
    std::vector<float> wide(n);
    Cpu cpu;
    convert(cpu, std::span{a}, std::span{wide});
    for (std::size_t i = 0; i < n; ++i) CHECK(wide[i] == static_cast<float>(value(a[i])));
  }
}

TEST_CASE("gradients of gelu and swiglu against finite differences in double") {
  auto x = noise<double>(4001, 3, 5), u = noise<double>(4001, 4, 2), dy = noise<double>(4001, 5);
  Cpu cpu;
  std::vector<double> dx(x.size()), dg(x.size()), du(x.size());
  gelu_backward(cpu, std::span{x}, std::span{dy}, std::span{dx});
  swiglu_backward(cpu, std::span{x}, std::span{u}, std::span{dy}, std::span{dg}, std::span{du});
  for (std::size_t i = 0; i < x.size(); ++i) {
    CHECK(dx[i] == doctest::Approx(dy[i] * slope(gelu_of, x[i])).epsilon(1e-6));
    CHECK(dg[i] ==
          doctest::Approx(dy[i] * u[i] * slope([](double g) { return g * sigmoid_of(g); }, x[i])).epsilon(1e-6));
    CHECK(du[i] == doctest::Approx(dy[i] * x[i] * sigmoid_of(x[i])).epsilon(1e-9));
  }
}

TEST_CASE("large numbers saturate; NaN comes through") {
  std::vector<float> x{1e4f, -1e4f, 3e38f, -3e38f, std::nanf("")}, y(5), dx(5), one(5, 1.0f);
  Cpu cpu;
  gelu_forward(cpu, std::span{x}, std::span{y});
  CHECK(y[0] == 1e4f);
  CHECK(y[1] == 0);
  CHECK(std::isnan(y[4]));
  swiglu_forward(cpu, std::span{x}, std::span{one}, std::span{y});
  CHECK(y[0] == 1e4f);
  CHECK(std::abs(y[1]) < 1e-30f);
  CHECK(std::isnan(y[4]));
}

TEST_CASE("dropout: the rate, the scale, and a mask that depends on the place only") {
  constexpr std::size_t n = 100003;
  auto x = std::vector<float>(n, 1.0f);
  const Random random(9, RandomPurpose::dropout);
  const auto y = on_threads(std::vector<float>(n), [&](auto& on, auto& out) {
    dropout(on, std::span{x}, std::span{out}, 0.25f, random, {.first = 1000});
  });
  std::size_t zeros = 0;
  for (float v : y) {
    CHECK((v == 0 || v == doctest::Approx(4.0 / 3)));
    zeros += v == 0;
  }
  CHECK(std::abs(static_cast<double>(zeros) / n - 0.25) < 0.005);  // 3.6 standard deviations
  for (std::size_t cut : {1, 4, 4096, 50001}) {                    // in two parts, the second further on
    std::vector<float> parts(n);
    Cpu cpu;
    dropout(cpu, std::span{x}.first(cut), std::span{parts}.first(cut), 0.25f, random, {.first = 1000});
    dropout(cpu, std::span{x}.subspan(cut), std::span{parts}.subspan(cut), 0.25f, random,
            {.first = 1000 + static_cast<std::int64_t>(cut)});
    CHECK(parts == y);
  }
}

TEST_CASE("vectors of f16 and bf16 convert as their elements do, at every width and alignment") {
  const auto check = [](auto width, auto type) {
    constexpr int n = decltype(width)::value;
    using T = decltype(type);
    std::int64_t wrong = 0;
    for (std::uint32_t pattern = 0; pattern + n <= 0x10000u; pattern += n) {
      T from[n + 1], back[n + 1];
      for (int i = 0; i < n; ++i)
        from[i + 1].bits = static_cast<std::uint16_t>(pattern + static_cast<std::uint32_t>(i));
      const auto wide = kernels::load<n>(from + 1);
      for (int i = 0; i < n; ++i)
        wrong += std::bit_cast<std::uint32_t>(float{wide[i]}) != std::bit_cast<std::uint32_t>(float{from[i + 1]});
      kernels::Vector<float, n> values{};
      for (int i = 0; i < n; ++i)  // over all exponents and the whole fraction
        values[i] =
            std::bit_cast<float>((pattern + static_cast<std::uint32_t>(i)) * 0x10003u + 0x1fffu * (pattern % 7));
      kernels::store<n, float>(back + 1, values);
      for (int i = 0; i < n; ++i) wrong += back[i + 1].bits != T(float{values[i]}).bits;
    }
    CHECK(wrong == 0);
  };
  const auto widths = [&](auto type) {
    check(std::integral_constant<int, 4>{}, type);
    if constexpr (kernels::lanes<float> >= 8) check(std::integral_constant<int, 8>{}, type);
    if constexpr (kernels::lanes<float> >= 16) check(std::integral_constant<int, 16>{}, type);
  };
  widths(f16{});
  widths(bf16{});
}

TEST_CASE_TEMPLATE("norms of rows", T, float, double, bf16, f16) {
  for (std::int64_t n : {0, 1, 3, 130})
    for (std::int64_t width : {1, 5, 64, 77}) {
      CAPTURE(n);
      CAPTURE(width);
      const auto count = static_cast<std::size_t>(n * width), w = static_cast<std::size_t>(width);
      const auto x = noise<T>(count, 1, 3), gamma = noise<T>(w, 2), beta = noise<T>(w, 3);
      std::vector<compute_t<T>> mean(static_cast<std::size_t>(n)), rstd(mean.size());
      const auto statistics = [&](std::size_t i) {
        const auto row = i / w * w;
        double sum = 0, square = 0;
        for (std::size_t c = 0; c < w; ++c) sum += value(x[row + c]);
        for (std::size_t c = 0; c < w; ++c) square += std::pow(value(x[row + c]) - sum / static_cast<double>(w), 2);
        return std::pair{sum / static_cast<double>(w), 1 / std::sqrt(square / static_cast<double>(w) + 1e-5)};
      };
      expect(on_threads(std::vector<T>(count),
                        [&](auto& on, auto& y) {
                          layer_norm_forward(on, x.data(), gamma.data(), beta.data(), compute_t<T>(1e-5), y.data(),
                                             mean.data(), rstd.data(), n, width);
                        }),
             [&](std::size_t i) {
               const auto [m, r] = statistics(i);
               return (value(x[i]) - m) * r * value(gamma[i % w]) + value(beta[i % w]);
             });
      expect(on_threads(std::vector<T>(count),
                        [&](auto& on, auto& y) {
                          rms_norm_forward(on, x.data(), gamma.data(), compute_t<T>(1e-5), y.data(), rstd.data(), n,
                                           width);
                        }),
             [&](std::size_t i) {
               double square = 0;
               for (std::size_t c = 0; c < w; ++c) square += std::pow(value(x[i / w * w + c]), 2);
               return value(x[i]) / std::sqrt(square / static_cast<double>(w) + 1e-5) * value(gamma[i % w]);
             });
    }
}

TEST_CASE("gradients of norms against finite differences in double") {
  constexpr std::int64_t n = 67, width = 9;
  auto x = noise<double>(n * width, 1, 2), gamma = noise<double>(width, 2), beta = noise<double>(width, 3);
  const auto dy = noise<double>(n * width, 4);
  Cpu cpu;
  std::vector<double> y(x.size()), mean(n), rstd(n), dx(x.size()), dgamma(width), dbeta(width);
  for (bool rms : {false, true}) {
    const auto objective = [&] {
      rms ? rms_norm_forward(cpu, x.data(), gamma.data(), 1e-5, y.data(), rstd.data(), n, width)
          : layer_norm_forward(cpu, x.data(), gamma.data(), beta.data(), 1e-5, y.data(), mean.data(), rstd.data(), n,
                               width);
      double sum = 0;
      for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
      return sum;
    };
    objective();
    std::fill(dgamma.begin(), dgamma.end(), 1.0);  // gradients of parameters are added
    std::fill(dbeta.begin(), dbeta.end(), 1.0);
    rms ? rms_norm_backward(cpu, dy.data(), x.data(), gamma.data(), rstd.data(), dx.data(), dgamma.data(), n, width)
        : layer_norm_backward(cpu, dy.data(), x.data(), gamma.data(), mean.data(), rstd.data(), dx.data(),
                              dgamma.data(), dbeta.data(), n, width);
    const auto check = [&](double& at, double gradient) {
      const double before = at, h = 1e-5;
      at = before + h;
      const double up = objective();
      at = before - h;
      const double down = objective();
      at = before;
      CHECK(gradient == doctest::Approx((up - down) / (2 * h)).epsilon(1e-6));
    };
    for (std::size_t i = 0; i < x.size(); i += 5) check(x[i], dx[i]);
    for (std::size_t c = 0; c < width; ++c) check(gamma[c], dgamma[c] - 1);
    for (std::size_t c = 0; c < width && !rms; ++c) check(beta[c], dbeta[c] - 1);
  }
}

TEST_CASE("a constant row and a row of zeros have a norm") {
  std::vector<float> x(8, 5.0f), zero(8), gamma(8, 2.0f), beta(8, 1.0f), y(8), mean(1), rstd(1);
  Cpu cpu;
  layer_norm_forward(cpu, x.data(), gamma.data(), beta.data(), 1e-5f, y.data(), mean.data(), rstd.data(), 1, 8);
  for (float v : y) CHECK(v == 1.0f);
  rms_norm_forward(cpu, zero.data(), gamma.data(), 1e-5f, y.data(), rstd.data(), 1, 8);
  for (float v : y) CHECK(v == 0.0f);
}

TEST_CASE("embedding: rows and positions; gradients of a token that recurs add up in order") {
  constexpr std::int64_t vocabulary = 11, sequence = 5, width = 70;
  const std::vector<std::int32_t> tokens{3, 3, 10, 0, 3, 1, 3, 3, 2, 10};
  const auto table = noise<float>(vocabulary * width, 1), positions = noise<float>(sequence * width, 2),
             dy = noise<float>(tokens.size() * width, 3);
  const auto y = on_threads(std::vector<float>(tokens.size() * width), [&](auto& on, auto& out) {
    embedding_forward(on, std::span{tokens}, table.data(), vocabulary, positions.data(), sequence, out.data(), width);
  });
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (std::size_t c = 0; c < width; ++c)
      CHECK(y[i * width + c] ==
            table[static_cast<std::size_t>(tokens[i]) * width + c] + positions[i % sequence * width + c]);
  std::vector<float> wanted(vocabulary * width), wanted_positions(sequence * width);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (std::size_t c = 0; c < width; ++c) {
      wanted[static_cast<std::size_t>(tokens[i]) * width + c] += dy[i * width + c];
      wanted_positions[i % sequence * width + c] += dy[i * width + c];
    }
  CHECK(on_threads(std::vector<float>(wanted.size()), [&](auto& on, auto& dtable) {
          std::vector<float> dpositions(wanted_positions.size());
          embedding_backward(on, std::span{tokens}, dy.data(), dtable.data(), dpositions.data(), sequence, width);
          CHECK(dpositions == wanted_positions);
        }) == wanted);
  for (std::int32_t bad : {-1, 11}) {
    const std::vector<std::int32_t> outside{0, bad};
    std::vector<float> out(2 * width);
    Cpu cpu;
    CHECK_THROWS_WITH_AS(embedding_forward(cpu, std::span{outside}, table.data(), vocabulary,
                                           static_cast<const float*>(nullptr), sequence, out.data(), width),
                         doctest::Contains("at place 1"), DataError);
  }
}

TEST_CASE("rotary positions: the first stays, lengths stay, products depend on the distance, and back again") {
  constexpr std::int64_t sequence = 40, heads = 2, size = 6, stride = 17;
  const auto x = noise<double>(sequence * stride, 1);
  const auto turned = on_threads(
      x, [&](auto& on, auto& y) { rope(on, y.data(), stride, 1, sequence, heads, size, 10000, Turn::forward); });
  for (std::size_t i = 0; i < stride; ++i) CHECK(turned[i] == x[i]);
  for (std::size_t t = 0; t < sequence; ++t)
    for (std::size_t i = heads * size; i < stride; ++i) CHECK(turned[t * stride + i] == x[t * stride + i]);
  for (std::size_t t = 0; t < sequence; ++t) {
    double before = 0, after = 0;
    for (std::size_t i = 0; i < heads * size; ++i) {
      before += x[t * stride + i] * x[t * stride + i];
      after += turned[t * stride + i] * turned[t * stride + i];
    }
    CHECK(after == doctest::Approx(before).epsilon(1e-12));
  }
  // one row everywhere: q(s) · k(t) is a function of s − t
  std::vector<double> same(sequence * size);
  for (std::size_t i = 0; i < same.size(); ++i) same[i] = x[i % size];
  Cpu cpu;
  rope(cpu, same.data(), size, 1, sequence, 1, size, 10000, Turn::forward);
  const auto dot = [&](std::size_t s, std::size_t t) {
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += same[s * size + i] * same[t * size + i];
    return sum;
  };
  for (std::size_t t = 0; t + 8 < sequence; ++t) CHECK(dot(t + 8, t) == doctest::Approx(dot(8, 0)).epsilon(1e-12));
  CHECK(dot(8, 0) != doctest::Approx(dot(3, 0)));
  auto back = turned;
  rope(cpu, back.data(), stride, 1, sequence, heads, size, 10000, Turn::backward);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(back[i] == doctest::Approx(x[i]).epsilon(1e-12));
}

TEST_CASE("sum of squares: the same bits on any number of threads; NaN and infinity come through") {
  for (std::size_t n : {0, 1, 4095, 4096, 100001}) {
    auto x = noise<float>(n, 7);
    double wanted = 0;
    for (float v : x) wanted += static_cast<double>(v) * static_cast<double>(v);
    Cpu one, three{{.threads = 3}};
    const double sum = sum_of_squares(one, std::span{x});
    CHECK(sum == doctest::Approx(wanted).epsilon(1e-12));
    CHECK(sum == sum_of_squares(three, std::span{x}));
    if (n == 0) continue;
    x[n / 2] = std::numeric_limits<float>::infinity();
    CHECK(std::isinf(sum_of_squares(one, std::span{x})));
    x[0] = std::nanf("");
    CHECK(std::isnan(sum_of_squares(one, std::span{x})));
  }
}
