// SPDX-License-Identifier: Apache-2.0
// Matrix products against plain loops in double, and that their bits depend on nothing but the numbers.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/kernels/matmul.hpp>

using namespace zeropp;
using namespace zeropp::kernels;

namespace {

/// Uniform in [-1, 1): a plain linear congruence, much quicker than the library's counters.
template <class T>
std::vector<T> numbers(std::int64_t n, std::uint64_t seed) {
  std::vector<T> out(static_cast<std::size_t>(n));
  for (auto& v : out) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<T>(static_cast<float>(static_cast<std::int64_t>(seed) >> 32) * 0x1p-31f);
  }
  return out;
}

template <class T>
double at(MatrixView<T> m, std::int64_t r, std::int64_t c) {
  return static_cast<double>(
      static_cast<compute_t<T>>(m.transposed ? m.data[c * m.stride + r] : m.data[r * m.stride + c]));
}

template <class T>
std::string bytes(const std::vector<T>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)};
}

/// Half a unit in the last place, relative.
template <class T>
constexpr double half_ulp() {
  return std::is_same_v<T, double> ? 0x1p-53 : std::is_same_v<T, float> ? 0x1p-24 : 0x1p-8;
}

template <class A, class B, class T>
void against_loops(std::int64_t m, std::int64_t n, std::int64_t k, bool a_turned, bool b_turned, Into into) {
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(a_turned);
  CAPTURE(b_turned);
  const auto a_data = numbers<A>(m * k, 1);
  const auto b_data = numbers<B>(k * n, 2);
  // c is a block inside a wider matrix: what is around it must stay
  const std::int64_t stride = n + 3;
  auto c_data = numbers<T>((m + 2) * stride, 3);
  const auto before = c_data;
  const auto a = a_turned ? row_major(a_data.data(), k, m).t() : row_major(a_data.data(), m, k);
  const auto b = b_turned ? row_major(b_data.data(), n, k).t() : row_major(b_data.data(), k, n);
  const auto c = row_major(c_data.data(), m + 2, stride).block(1, 2, m, n);
  Cpu device;
  matmul(device, a, b, c, into);
  double worst = 0;
  bool kept = true;
  for (std::int64_t r = 0; r < m + 2; ++r)
    for (std::int64_t j = 0; j < stride; ++j) {
      const auto i = static_cast<std::size_t>(r * stride + j);
      if (r < 1 || r > m || j < 2 || j >= n + 2) {
        kept = kept && std::memcmp(&c_data[i], &before[i], sizeof(T)) == 0;
        continue;
      }
      double sum = into == Into::add ? static_cast<double>(static_cast<compute_t<T>>(before[i])) : 0,
             size = std::abs(sum);
      for (std::int64_t p = 0; p < k; ++p) {
        const double product = at(a, r - 1, p) * at(b, p, j - 2);
        sum += product;
        size += std::abs(product);
      }
      const double allowed =
          static_cast<double>(k + 2) * half_ulp<compute_t<T>>() * size + half_ulp<T>() * std::abs(sum);
      const double error = std::abs(static_cast<double>(static_cast<compute_t<T>>(c_data[i])) - sum);
      worst = std::max(worst, error == 0 ? 0 : error / allowed);
    }
  CHECK(kept);
  CHECK(worst <= 1.0);
}

template <class A, class B, class T>
void over_sizes() {
  for (std::int64_t m : {0, 1, 3, 17, 64, 65, 130})
    for (std::int64_t n : {0, 1, 3, 17, 64, 65, 130})
      for (std::int64_t k : {0, 1, 3, 17, 64, 65, 130}) {
        const bool odd = (m + n + k) % 2;  // either way of storing, without trying all for all sizes
        against_loops<A, B, T>(m, n, k, false, odd, Into::overwrite);
        against_loops<A, B, T>(m, n, k, true, odd, Into::add);
      }
  for (bool a_turned : {false, true})
    for (bool b_turned : {false, true})
      for (auto into : {Into::overwrite, Into::add}) {
        against_loops<A, B, T>(67, 131, 1030, a_turned, b_turned, into);
        against_loops<A, B, T>(1030, 67, 131, a_turned, b_turned, into);
        against_loops<A, B, T>(67, 1030, 131, a_turned, b_turned, into);
      }
}

}  // namespace

TEST_CASE("products of every type against loops, over odd sizes, inside a wider matrix") {
  SUBCASE("float") { over_sizes<float, float, float>(); }
  SUBCASE("double") { over_sizes<double, double, double>(); }
  SUBCASE("bf16") { over_sizes<bf16, bf16, bf16>(); }
  SUBCASE("bf16 into float: gradients") { over_sizes<bf16, bf16, float>(); }
  SUBCASE("f16") { over_sizes<f16, f16, f16>(); }
  SUBCASE("f16 into float: gradients") { over_sizes<f16, f16, float>(); }
  SUBCASE("float and bf16 into bf16: the head") { over_sizes<float, bf16, bf16>(); }
}

TEST_CASE("a result in bf16 is rounded once, however deep the product") {
  const std::int64_t m = 33, n = 70, k = 3001;
  const auto a = numbers<bf16>(m * k, 1), b = numbers<bf16>(k * n, 2);
  std::vector<float> whole(static_cast<std::size_t>(m * n));
  std::vector<bf16> rounded(whole.size()), expected(whole.size());
  Cpu device;
  matmul(device, row_major(a.data(), m, k), row_major(b.data(), k, n), row_major(whole.data(), m, n));
  matmul(device, row_major(a.data(), m, k), row_major(b.data(), k, n), row_major(rounded.data(), m, n));
  for (std::size_t i = 0; i < whole.size(); ++i) expected[i] = bf16(whole[i]);
  CHECK(bytes(rounded) == bytes(expected));
}

TEST_CASE("the bits do not depend on threads or on where the operands lie in memory") {
  auto run = [](auto type, int threads, std::size_t shift, std::int64_t m, std::int64_t n, std::int64_t k) {
    using T = decltype(type);
    const auto a_data = numbers<T>(m * k, 1), b_data = numbers<T>(n * k, 2), c_data = numbers<T>(m * n, 3);
    std::vector<T> a(a_data.size() + 64), b(b_data.size() + 64), c(c_data.size() + 64);
    std::copy(a_data.begin(), a_data.end(), a.begin() + static_cast<std::ptrdiff_t>(shift));
    std::copy(b_data.begin(), b_data.end(), b.begin() + static_cast<std::ptrdiff_t>(2 * shift));
    std::copy(c_data.begin(), c_data.end(), c.begin() + static_cast<std::ptrdiff_t>(3 * shift));
    Cpu device({.threads = threads});
    matmul(device, row_major<const T>(a.data() + shift, m, k), row_major<const T>(b.data() + 2 * shift, n, k).t(),
           row_major(c.data() + 3 * shift, m, n), Into::add);
    return std::string(reinterpret_cast<const char*>(c.data() + 3 * shift), c_data.size() * sizeof(T));
  };
  auto all = [&](auto type) {
    const std::int64_t sizes[][3] = {{2, 3, 4}, {5, 7, 9}, {1, 300, 40}, {300, 1, 40}, {600, 1100, 130}};
    for (const auto& size : sizes) {
      const auto m = size[0], n = size[1], k = size[2];
      CAPTURE(m);
      CAPTURE(n);
      const auto one = run(type, 1, 0, m, n, k);
      CHECK(run(type, 2, 0, m, n, k) == one);
      CHECK(run(type, 3, 1, m, n, k) == one);
      CHECK(run(type, 1, 1, m, n, k) == one);
      CHECK(run(type, 1, 5, m, n, k) == one);
    }
  };
  all(float{});
  all(double{});
  all(bf16{});
  all(f16{});
}

TEST_CASE("the linear layer's products: bias in every row, gradients add") {
  const std::int64_t n = 70, in = 33, out = 129;
  auto check = [&](auto type, double tolerance) {
    using T = decltype(type);
    const auto x = numbers<T>(n * in, 1), w = numbers<T>(out * in, 2), bias = numbers<T>(out, 3),
               dy = numbers<T>(n * out, 4);
    std::vector<T> y(static_cast<std::size_t>(n * out)), plain(y.size()), dx(x.size());
    std::vector<compute_t<T>> dw(w.size(), 1), dbias(bias.size(), 2);
    auto value = [](T v) { return static_cast<double>(static_cast<compute_t<T>>(v)); };
    Cpu device({.threads = 2});
    linear_forward(device, x.data(), w.data(), bias.data(), y.data(), n, in, out);
    linear_forward(device, x.data(), w.data(), static_cast<const T*>(nullptr), plain.data(), n, in, out);
    linear_backward_input(device, dy.data(), w.data(), dx.data(), n, in, out);
    linear_backward_weight(device, dy.data(), x.data(), dw.data(), decltype(dw.data()){}, n, in, out);
    column_sum(device, dy.data(), dbias.data(), n, out);
    auto near = [&](double got, double expected) {
      return std::abs(got - expected) <= tolerance * (1 + std::abs(expected));
    };
    bool good = true;
    for (std::int64_t r = 0; r < n; ++r)
      for (std::int64_t o = 0; o < out; ++o) {
        double sum = 0;
        for (std::int64_t i = 0; i < in; ++i)
          sum += value(x[static_cast<std::size_t>(r * in + i)]) * value(w[static_cast<std::size_t>(o * in + i)]);
        good = good && near(value(plain[static_cast<std::size_t>(r * out + o)]), sum) &&
               near(value(y[static_cast<std::size_t>(r * out + o)]), sum + value(bias[static_cast<std::size_t>(o)]));
      }
    CHECK(good);
    for (std::int64_t r = 0; r < n; ++r)
      for (std::int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (std::int64_t o = 0; o < out; ++o)
          sum += value(dy[static_cast<std::size_t>(r * out + o)]) * value(w[static_cast<std::size_t>(o * in + i)]);
        good = good && near(value(dx[static_cast<std::size_t>(r * in + i)]), sum);
      }
    CHECK(good);
    for (std::int64_t o = 0; o < out; ++o) {
      double sum_bias = 2;
      for (std::int64_t r = 0; r < n; ++r) sum_bias += value(dy[static_cast<std::size_t>(r * out + o)]);
      good = good && near(static_cast<double>(dbias[static_cast<std::size_t>(o)]), sum_bias);
      for (std::int64_t i = 0; i < in; ++i) {
        double sum = 1;
        for (std::int64_t r = 0; r < n; ++r)
          sum += value(dy[static_cast<std::size_t>(r * out + o)]) * value(x[static_cast<std::size_t>(r * in + i)]);
        good = good && near(static_cast<double>(dw[static_cast<std::size_t>(o * in + i)]), sum);
      }
    }
    CHECK(good);
  };
  check(float{}, 2e-5);
  check(double{}, 1e-13);
  check(bf16{}, 0x1p-8 + 1e-5);
  check(f16{}, 0x1p-11 + 1e-5);
}

TEST_CASE("a sum of columns has the same bits on any number of threads") {
  const std::int64_t n = 1000, width = 777;
  const auto x = numbers<float>(n * width, 1);
  auto run = [&](int threads) {
    std::vector<float> sum(static_cast<std::size_t>(width));
    Cpu device({.threads = threads});
    column_sum(device, x.data(), sum.data(), n, width);
    return bytes(sum);
  };
  CHECK(run(1) == run(2));
  CHECK(run(1) == run(5));
}

TEST_CASE("NaN and infinity come through") {
  std::vector<float> a(64 * 64, 1.0f), b(64 * 64, 1.0f), c(64 * 64);
  a[5 * 64 + 7] = std::nanf("");
  b[9 * 64 + 11] = INFINITY;
  Cpu device;
  matmul(device, row_major<const float>(a.data(), 64, 64), row_major<const float>(b.data(), 64, 64),
         row_major(c.data(), 64, 64));
  CHECK(std::isnan(c[5 * 64]));
  CHECK(std::isinf(c[6 * 64 + 11]));
  CHECK(c[6 * 64 + 12] == 64);
}

TEST_CASE("shapes that do not fit are refused with all three of them") {
  std::vector<float> data(100);
  Cpu device;
  auto refused = [&](MatrixView<float> a, MatrixView<float> b, MatrixView<float> c) -> std::string {
    try {
      matmul(device, a, b, c);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  const auto m = row_major(data.data(), 4, 5);
  CHECK(refused(m, m, m).find("4x5 by 4x5 into 4x5") != std::string::npos);
  CHECK(refused(m, m.t(), m).find("4x5 by 5x4 into 4x5") != std::string::npos);
  CHECK(refused(m, m.t(), row_major(data.data(), 4, 4).t()).find("transposed") != std::string::npos);
  CHECK(refused(m, m.t(), row_major(data.data() + 40, 4, 4)) == "");
}

TEST_CASE("the dry device counts a product and touches nothing") {
  Dry dry;
  auto a = dry.pool().take_temporary(std::size_t{1} << 40, Purpose::buffers);
  auto* p = reinterpret_cast<float*>(a.get());
  linear_forward(dry, p, p, p, p, 1 << 20, 1 << 10, 1 << 12);
  linear_backward_input(dry, p, p, p, 1 << 20, 1 << 10, 1 << 12);
  linear_backward_weight(dry, p, p, p, decltype(p){}, 1 << 20, 1 << 10, 1 << 12);
  CHECK(dry.flops() == doctest::Approx(3 * 2.0 * 0x1p42));
  column_sum(dry, p, p, 1 << 20, 1 << 10);
  CHECK(dry.kernels() == 4);
}
