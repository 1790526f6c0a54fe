// SPDX-License-Identifier: Apache-2.0
// Kernels of the GPU that go element by element, and sums, against the CPU's in double: sizes that fill no vector,
// pointers that are not aligned, none, results in place of arguments, the same bits twice.
#include "buffers.hpp"

#include <algorithm>
#include <limits>

#include <zeropp/kernels/gradient_norm.hpp>
#include <zeropp/kernels/cuda/column_sum.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/initialise.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/kernels/rope.hpp>

using namespace zeropp;
using namespace zeropp::test;

namespace {
constexpr std::size_t sizes[] = {0, 1, 7, 33, 768, 8192, 16389, 100003};

template <class T>
auto constant(const OnGpu<T>& x) {
  return std::span<const T>(x.span());
}
}  // namespace

TEST_CASE_TEMPLATE("element by element", T, float, double, bf16, f16) {
  Cuda gpu;
  Cpu cpu;
  for (const std::int64_t shift : {0, 1})
    for (auto n : sizes) {
      CAPTURE(n);
      CAPTURE(shift);
      const auto a = noise<T>(n, 1 + n, 4), b = noise<T>(n, 2 + n, 4), c = noise<T>(n, 3 + n, 4);
      const OnGpu<T> x(gpu, a, shift), y(gpu, b, shift), z(gpu, c, shift);
      auto da = doubles(a), db = doubles(b), dc = doubles(c);
      std::vector<double> wanted(n), other(n);
      const auto check = [&](auto on_gpu, auto on_cpu, double ulps) {
        const OnGpu<T> out(gpu, n, shift);
        on_gpu(out);
        on_cpu();
        expect(out.values(), wanted, ulps);
      };
      check([&](auto& out) { kernels::add(gpu, x.span(), y.span(), out.span()); },
            [&] { kernels::add(cpu, std::span{da}, std::span{db}, std::span{wanted}); }, 1);
      check([&](auto& out) { kernels::gelu_forward(gpu, x.span(), out.span()); },
            [&] { kernels::gelu_forward(cpu, std::span{da}, std::span{wanted}); }, 16);
      check([&](auto& out) { kernels::gelu_backward(gpu, x.span(), y.span(), out.span()); },
            [&] { kernels::gelu_backward(cpu, std::span{da}, std::span{db}, std::span{wanted}); }, 64);
      check([&](auto& out) { kernels::swiglu_forward(gpu, x.span(), y.span(), out.span()); },
            [&] { kernels::swiglu_forward(cpu, std::span{da}, std::span{db}, std::span{wanted}); }, 16);
      check([&](auto& out) { kernels::fill(gpu, out.span(), static_cast<T>(1.5f)); },
            [&] { std::fill(wanted.begin(), wanted.end(), 1.5); }, 0.01);
      check(
          [&](auto& out) {
            kernels::copy(gpu, constant(x), out.span());
            CHECK(same_bits(out.values(), a));
          },
          [&] { wanted = da; }, 1);
      {
        const OnGpu<T> gate(gpu, n, shift), up(gpu, n, shift);
        kernels::swiglu_backward(gpu, x.span(), y.span(), z.span(), gate.span(), up.span());
        kernels::swiglu_backward(cpu, std::span{da}, std::span{db}, std::span{dc}, std::span{wanted}, std::span{other});
        expect(gate.values(), wanted, 64);
        expect(up.values(), other, 64);
      }
      {  // in place
        const OnGpu<T> scaled(gpu, a, shift), added(gpu, a, shift), slope(gpu, b, shift), apart(gpu, n, shift);
        kernels::scale(gpu, scaled.span(), compute_t<T>(0.3f));
        for (std::size_t i = 0; i < n; ++i) wanted[i] = da[i] * static_cast<double>(0.3f);
        expect(scaled.values(), wanted, 1);
        kernels::add(gpu, added.span(), y.span(), added.span());
        kernels::add(gpu, x.span(), y.span(), apart.span());
        CHECK(same_bits(added.values(), apart.values()));
        kernels::gelu_backward(gpu, x.span(), slope.span(), slope.span());
        kernels::gelu_backward(gpu, x.span(), y.span(), apart.span());
        CHECK(same_bits(slope.values(), apart.values()));
      }
    }
}

TEST_CASE("gelu where it is flat, and not a number") {
  Cuda gpu;
  const std::vector<float> at{-100, -20, -6, 0, 6, 20, 100, std::numeric_limits<float>::quiet_NaN()};
  const OnGpu<float> x(gpu, at), y(gpu, at.size());
  kernels::gelu_forward(gpu, x.span(), y.span());
  const auto got = y.values();
  CHECK(got[0] == 0);
  CHECK(std::abs(got[2]) < 1e-8);
  CHECK(got[3] == 0);
  CHECK(got[5] == 20);
  CHECK(got[6] == 100);
  CHECK(std::isnan(got[7]));
}

namespace {

template <class Narrow, class T>
void check_conversions(Cuda& gpu, std::vector<T> wide, std::int64_t shift) {
  Cpu cpu;
  const auto n = wide.size();
  const OnGpu<T> from(gpu, wide, shift), back(gpu, n, shift);
  const OnGpu<Narrow> to(gpu, n, shift);
  std::vector<Narrow> narrow(n);
  kernels::convert(gpu, from.span(), to.span());
  kernels::convert(cpu, std::span{wide}, std::span{narrow});
  CHECK(same_bits(to.values(), narrow));
  kernels::convert(gpu, to.span(), back.span());
  kernels::convert(cpu, std::span{narrow}, std::span{wide});
  CHECK(same_bits(back.values(), wide));
}

}  // namespace

TEST_CASE_TEMPLATE("conversions are the CPU's, bit for bit", T, float, double) {
  Cuda gpu;
  for (const std::int64_t shift : {0, 1})
    for (auto n : sizes) {
      auto wide = noise<T>(n, 5, 3);
      for (std::size_t i = 0; i + 3 < n; i += 5) wide[i] = static_cast<T>(1 + 0x1p-8);  // halfway: to even
      check_conversions<bf16>(gpu, wide, shift);
      for (std::size_t i = 0; i + 3 < n; i += 5) wide[i] = static_cast<T>(1 + 0x1p-11);
      for (std::size_t i = 1; i + 3 < n; i += 5) wide[i] *= static_cast<T>(0x1p-15);  // subnormal
      for (std::size_t i = 2; i + 3 < n; i += 5) wide[i] *= static_cast<T>(0x1p15);   // up to infinity
      check_conversions<f16>(gpu, wide, shift);
    }
}

TEST_CASE("each f16 and the floats around it convert as on the CPU") {
  Cuda gpu;
  std::vector<float> around;
  for (std::uint32_t pattern = 0; pattern < 0x10000u; ++pattern) {
    f16 half;
    half.bits = static_cast<std::uint16_t>(pattern);
    if ((pattern & 0x7c00u) == 0x7c00u) continue;  // a GPU's NaNs are all alike
    const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(half));
    for (std::uint32_t add : {0u, 0xfffu, 0x1000u, 0x1001u}) around.push_back(std::bit_cast<float>(bits + add));
  }
  check_conversions<f16>(gpu, around, 0);
}

TEST_CASE_TEMPLATE("dropout is the CPU's, bit for bit", T, float, double, bf16, f16) {
  Cuda gpu;
  Cpu cpu;
  const Random random(3, RandomPurpose::dropout, 7, 9);
  for (const std::int64_t first : {0, 4, 1, 3, 1030, (1 << 30) + 6})
    for (const std::int64_t shift : {0, 1})
      for (auto n : sizes) {
        CAPTURE(n);
        CAPTURE(first);
        auto host = noise<T>(n, 8);
        const OnGpu<T> x(gpu, host, shift), y(gpu, n, shift);
        kernels::dropout(gpu, x.span(), y.span(), 0.3f, random, {.first = first});
        kernels::dropout(gpu, x.span(), x.span(), 0.3f, random, {.first = first});
        kernels::dropout(cpu, std::span{host}, std::span{host}, 0.3f, random, {.first = first});
        CHECK(same_bits(y.values(), host));
        CHECK(same_bits(x.values(), host));
      }
}

TEST_CASE_TEMPLATE("squares have the CPU's bits, alone and with others", T, float, bf16) {
  Cuda gpu;
  Cpu cpu;
  std::vector<std::vector<T>> host;
  std::vector<OnGpu<T>> parts;
  std::vector<std::span<T>> spans;
  std::vector<double> wanted;
  for (int k = 0; k < 300; ++k) {  // more than one launch takes
    const std::size_t n = k % 7 == 0   ? 0
                          : k % 7 == 1 ? 4096 * static_cast<std::size_t>(1 + k % 3)
                                       : 37u * static_cast<std::size_t>(k * k % 1500);
    host.push_back(noise<T>(n, static_cast<std::uint64_t>(k), 1 + k));
    parts.emplace_back(gpu, host.back(), k % 3);
    wanted.push_back(kernels::sum_of_squares(cpu, std::span{host.back()}));
  }
  for (auto& part : parts) spans.push_back(part.span());
  std::vector<int> places(parts.size());
  for (std::size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int>(places.size() - i);  // 0 is nobody's
  const OnGpu<double> sums(gpu, std::vector<double>(places.size() + 1, -1));
  kernels::sums_of_squares(gpu, std::span<const std::span<T>>(spans), std::span<const int>(places), sums.span());
  const auto got = sums.values();
  CHECK(got[0] == -1);
  CHECK(std::equal(wanted.rbegin(), wanted.rend(), got.begin() + 1));
  CHECK(kernels::sum_of_squares(gpu, spans[5]) == wanted[5]);
  kernels::sums_of_squares(gpu, std::span<const std::span<T>>{}, std::span<const int>{}, std::span<double>{});
  auto large = noise<T>(3'000'001, 77);
  const OnGpu<T> on_gpu(gpu, large);
  CHECK(kernels::sum_of_squares(gpu, on_gpu.span()) == kernels::sum_of_squares(cpu, std::span{large}));
  large[2'999'999] = static_cast<T>(std::numeric_limits<float>::infinity());
  const OnGpu<T> infinite(gpu, large);
  CHECK(std::isinf(kernels::sum_of_squares(gpu, infinite.span())));
  large[4097] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  const OnGpu<T> broken(gpu, large);
  CHECK(std::isnan(kernels::sum_of_squares(gpu, broken.span())));
}

TEST_CASE("squares of double") {
  Cuda gpu;
  Cpu cpu;
  auto x = noise<double>(100003, 4);
  const OnGpu<double> on_gpu(gpu, x);
  CHECK(kernels::sum_of_squares(gpu, on_gpu.span()) ==
        doctest::Approx(kernels::sum_of_squares(cpu, std::span{x})).epsilon(1e-14));
}

TEST_CASE_TEMPLATE("sums of columns", T, float, double, bf16, f16) {
  Cuda gpu;
  for (const std::int64_t width : {1, 7, 33, 768, 1600, 5000})
    for (const std::int64_t n : {0, 1, 31, 77, 1000})
      for (const std::int64_t shift : {0, 1}) {
        CAPTURE(width);
        CAPTURE(n);
        const auto x = noise<T>(static_cast<std::size_t>(n * width), 6);
        const auto w = static_cast<std::size_t>(width);
        const auto before = noise<T>(w, 7);
        const OnGpu<T> on_gpu(gpu, x, shift), sum(gpu, before, shift), again(gpu, before);
        const OnGpu<float> other(gpu, std::vector<float>(w), shift);
        auto wanted = doubles(before);
        std::vector<double> sums(w);
        for (std::size_t i = 0; i < x.size(); ++i) sums[i % w] += value(x[i]);
        for (std::size_t i = 0; i < w; ++i) wanted[i] += sums[i];
        kernels::column_sum(gpu, on_gpu.data(), sum.data(), n, width);
        expect(sum.values(), wanted, 64, 1 + std::sqrt(static_cast<double>(n)));
        kernels::column_sum(gpu, on_gpu.data(), again.data(), n, width);
        CHECK(same_bits(sum.values(), again.values()));
        if constexpr (!std::is_same_v<T, double>) {
          kernels::column_sum(gpu, on_gpu.data(), other.data(), n, width);
          expect(other.values(), sums, 64, 1 + std::sqrt(static_cast<double>(n)));
          const OnGpu<float> fresh(gpu, w, shift);
          kernels::column_sum(gpu, on_gpu.data(), fresh.data(), n, width, kernels::Into::overwrite);
          CHECK(same_bits(fresh.values(), other.values()));
        }
      }
}

TEST_CASE_TEMPLATE("rotary positions", T, float, double, bf16, f16) {
  Cuda gpu;
  Cpu cpu;
  struct Shape {
    std::int64_t batch, sequence, heads, size, stride;
  };
  for (const auto& s : {Shape{2, 5, 3, 64, 192}, Shape{1, 1, 1, 2, 2}, Shape{3, 100, 4, 32, 3 * 128},
                        Shape{2, 17, 2, 10, 23}, Shape{70, 2, 2, 16, 32}, Shape{0, 4, 1, 2, 2}})
    for (const auto turn : {kernels::Turn::forward, kernels::Turn::backward})
      for (const std::int64_t shift : {0, 1}) {
        CAPTURE(s.size);
        const auto x = noise<T>(static_cast<std::size_t>(s.batch * s.sequence * s.stride), 6);
        auto wanted = doubles(x);
        const OnGpu<T> on_gpu(gpu, x, shift);
        kernels::rope(cpu, wanted.data(), s.stride, s.batch, s.sequence, s.heads, s.size, 10000.0, turn);
        kernels::rope(gpu, on_gpu.data(), s.stride, s.batch, s.sequence, s.heads, s.size, 10000.0, turn);
        expect(on_gpu.values(), wanted, std::is_same_v<T, double> ? 1000 : 8);
      }
}

TEST_CASE_TEMPLATE("first weights", T, float, double, bf16, f16) {
  Cuda gpu;
  const Random random(12, RandomPurpose::initialisation, 3);
  for (const auto& init : {Init::constant(0.7f), Init::normal(0.02f), Init::uniform(0.3f)})
    for (const std::int64_t first : {0, 1, 6, 1003})
      for (auto n : sizes) {
        const OnGpu<T> weights(gpu, n, 1);
        const OnGpu<kept_t<T>> beside(gpu, has_master<T> ? n : 0, 1);
        kernels::initialise(gpu, init, random, first, weights.span(), beside.span());
        const auto w = weights.values();
        const auto kept = beside.values();
        std::vector<float> masters(n);
        std::vector<double> wanted(n);
        for (std::size_t i = 0; i < n; ++i) {
          if constexpr (has_master<T>) {
            masters[i] = master_of_t<T>{w[i], kept[i]}.master();
            CHECK(w[i].bits == master_of_t<T>::from(masters[i]).weight.bits);
          } else
            masters[i] = static_cast<float>(w[i]);
          wanted[i] = static_cast<double>(init(random, first + static_cast<std::int64_t>(i)));
        }
        const bool exact = init.kind != Init::Kind::normal;
        expect(masters, wanted, exact ? 1e-9 : 2, exact ? 1e-9 : 0.02);
      }
}

TEST_CASE("a clip has the CPU's numbers, on the GPU and on the host") {
  Cuda gpu;
  Cpu cpu;
  std::vector<ClipResult> held;  // more than there are slots in one piece of memory
  for (const std::size_t n : {1, 5, 31, 32, 33, 1000}) {
    std::vector<double> squares(n);
    for (std::size_t i = 0; i < n; ++i) squares[i] = 0.1 * static_cast<double>(i * 7919 % 1009);
    const OnGpu<double> on_gpu(gpu, squares);
    for (const double max_norm : {0.0, 1.0, 1e9}) {
      const auto clip = kernels::gradient_norm(gpu, std::span<const double>(on_gpu.span()), 0.7, max_norm);
      const auto wanted = kernels::gradient_norm(cpu, std::span<const double>(squares), 0.7, max_norm);
      CHECK(clip.norm() == wanted.norm());
      CHECK(clip.factor() == wanted.factor());
      CHECK(clip.finite());
      REQUIRE(clip.on_device());
      CHECK(!wanted.on_device());
      held.push_back(clip);
    }
  }
  for (const auto& clip : held) {
    GradientNorm place;
    gpu.download(&place, clip.on_device(), sizeof place);
    CHECK(place.norm == clip.norm());
    CHECK(place.factor == clip.factor());
  }
  CHECK(held.size() > 16);
  const OnGpu<double> broken(gpu, std::vector<double>{1, std::numeric_limits<double>::infinity()});
  CHECK(!kernels::gradient_norm(gpu, std::span<const double>(broken.span()), 1, 1).finite());
}
