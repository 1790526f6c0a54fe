// SPDX-License-Identifier: Apache-2.0
// Causal attention against the whole matrix of scores in double, its gradients against finite differences, and that its
// bits depend on nothing but the numbers.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <zeropp/device/cpu.hpp>
#include <zeropp/device/dry.hpp>
#include <zeropp/kernels/attention.hpp>
#include <zeropp/kernels/partial_attention.hpp>

using namespace zeropp;
using namespace zeropp::kernels;

namespace {

/// Uniform in [-1, 1): a plain linear congruence.
template <class T>
std::vector<T> numbers(std::int64_t n, std::uint64_t seed, float size = 1) {
  std::vector<T> out(static_cast<std::size_t>(n));
  for (auto& v : out) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<T>(size * static_cast<float>(static_cast<std::int64_t>(seed) >> 32) * 0x1p-31f);
  }
  return out;
}
template <class T>
double value(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}

/// Queries, keys and values packed as a layer has them, rows of (H + 2·Hkv) · D; all gradients too.
template <class T>
struct Case {
  AttentionShape s;
  std::vector<T> qkv, out, dout, dqkv;
  std::vector<compute_t<T>> lse;

  explicit Case(AttentionShape shape, float size = 1)
      : s(shape),
        qkv(numbers<T>(rows() * width(), 1, size)),
        out(static_cast<std::size_t>(rows() * heads_width())),
        dout(numbers<T>(rows() * heads_width(), 2)),
        dqkv(qkv.size()),
        lse(static_cast<std::size_t>(s.batch * s.heads * s.sequence)) {}

  std::int64_t rows() const { return s.batch * s.sequence; }
  std::int64_t heads_width() const { return s.heads * s.head_size; }
  std::int64_t width() const { return (s.heads + 2 * s.kv_heads) * s.head_size; }
  std::int64_t key_at() const { return heads_width(); }
  std::int64_t value_at() const { return heads_width() + s.kv_heads * s.head_size; }

  template <class D>
  void forward(D& device) {
    const T* p = qkv.data();
    causal_attention_forward<D, T>(device, s, {p, width()}, {p + key_at(), width()}, {p + value_at(), width()},
                                   {out.data(), heads_width()}, lse.data());
  }
  template <class D>
  void backward(D& device) {
    const T* p = qkv.data();
    T* d = dqkv.data();
    causal_attention_backward<D, T>(device, s, {p, width()}, {p + key_at(), width()}, {p + value_at(), width()},
                                    {out.data(), heads_width()}, lse.data(), {dout.data(), heads_width()}, {d, width()},
                                    {d + key_at(), width()}, {d + value_at(), width()});
  }
};

/// The textbook: out, log-sum-exp and gradients in double.
struct Reference {
  std::vector<double> out, lse, dqkv;

  template <class T>
  explicit Reference(const Case<T>& c) : out(c.out.size()), lse(c.lse.size()), dqkv(c.dqkv.size()) {
    const auto& s = c.s;
    const auto size = s.head_size, group = s.heads / s.kv_heads;
    const double scale = 1 / std::sqrt(static_cast<double>(size));
    std::vector<double> p(static_cast<std::size_t>(s.sequence));
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t t = 0; t < s.sequence; ++t) {
          const auto q = (b * s.sequence + t) * c.width() + h * size,
                     o = (b * s.sequence + t) * c.heads_width() + h * size;
          auto key = [&](std::int64_t j) { return (b * s.sequence + j) * c.width() + c.key_at() + h / group * size; };
          auto val = [&](std::int64_t j) { return (b * s.sequence + j) * c.width() + c.value_at() + h / group * size; };
          auto in = [&](std::int64_t at) { return value(c.qkv[static_cast<std::size_t>(at)]); };
          auto d = [&](std::int64_t at) -> double& { return dqkv[static_cast<std::size_t>(at)]; };
          double highest = -INFINITY, sum = 0, delta = 0;
          for (std::int64_t j = 0; j <= t; ++j) {
            double score = 0;
            for (std::int64_t i = 0; i < size; ++i) score += in(q + i) * in(key(j) + i) * scale;
            p[static_cast<std::size_t>(j)] = score;
            highest = std::max(highest, score);
          }
          for (std::int64_t j = 0; j <= t; ++j) sum += std::exp(p[static_cast<std::size_t>(j)] - highest);
          lse[static_cast<std::size_t>((b * s.heads + h) * s.sequence + t)] = highest + std::log(sum);
          for (std::int64_t j = 0; j <= t; ++j) {
            auto& pj = p[static_cast<std::size_t>(j)];
            pj = std::exp(pj - highest) / sum;
            for (std::int64_t i = 0; i < size; ++i) out[static_cast<std::size_t>(o + i)] += pj * in(val(j) + i);
          }
          auto dout = [&](std::int64_t i) { return value(c.dout[static_cast<std::size_t>(o + i)]); };
          for (std::int64_t i = 0; i < size; ++i) delta += dout(i) * out[static_cast<std::size_t>(o + i)];
          for (std::int64_t j = 0; j <= t; ++j) {
            const double pj = p[static_cast<std::size_t>(j)];
            double dp = 0;
            for (std::int64_t i = 0; i < size; ++i) dp += dout(i) * in(val(j) + i);
            const double ds = pj * (dp - delta) * scale;
            for (std::int64_t i = 0; i < size; ++i) {
              d(val(j) + i) += pj * dout(i);
              d(q + i) += ds * in(key(j) + i);
              d(key(j) + i) += ds * in(q + i);
            }
          }
        }
  }
};

/// Largest difference over the largest number.
template <class A>
double apart(const std::vector<A>& got, const std::vector<double>& expected) {
  double worst = 0, size = 1e-30;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(value(got[i]))) return INFINITY;
    worst = std::max(worst, std::abs(value(got[i]) - expected[i]));
    size = std::max(size, std::abs(expected[i]));
  }
  return worst / size;
}

template <class T>
std::string bytes(const std::vector<T>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)};
}

template <class T>
void against_reference(AttentionShape s, float size = 1) {
  INFO(text(s.batch, " sequences of ", s.sequence, ", ", s.heads, " heads over ", s.kv_heads, " of ", s.head_size));
  const double tolerance = std::is_same_v<T, double>  ? 1e-13
                           : std::is_same_v<T, float> ? 2e-5
                           : std::is_same_v<T, f16>   ? 0x1p-11
                                                      : 0x1p-8;
  Case<T> c(s, size);
  Cpu device;
  c.forward(device);
  const Reference expected(c);
  CHECK(apart(c.out, expected.out) <= tolerance);
  CHECK(apart(c.lse, expected.lse) <= (std::is_same_v<T, double> ? 1e-13 : 1e-5));
  c.backward(device);
  CHECK(apart(c.dqkv, expected.dqkv) <= 3 * tolerance);
}

template <class T>
void over_shapes() {
  for (std::int64_t sequence : {1, 2, 3, 17, 47, 48, 49, 64, 65, 95, 97, 130, 193})
    for (std::int64_t head_size : {1, 3, 16, 64, 65}) against_reference<T>({1, sequence, 1, 1, head_size});
  against_reference<T>({2, 33, 4, 4, 8});
  against_reference<T>({2, 70, 6, 2, 20});
  against_reference<T>({3, 50, 5, 1, 80});
  against_reference<T>({1, 150, 2, 2, 128});
  against_reference<T>({1, 1, 2, 1, 130});
}

}  // namespace

TEST_CASE("attention and its gradients against the whole matrix of scores") {
  SUBCASE("float") { over_shapes<float>(); }
  SUBCASE("double") { over_shapes<double>(); }
  SUBCASE("bf16") { over_shapes<bf16>(); }
  SUBCASE("f16") { over_shapes<f16>(); }
}

TEST_CASE("scores far apart: the softmax neither overflows nor loses the rest") {
  against_reference<double>({1, 130, 2, 1, 16}, 30);
  Case<float> c({1, 130, 2, 1, 16}, 30);
  Cpu device;
  c.forward(device);
  CHECK(apart(c.out, Reference(c).out) < 2e-3);  // scores of a few thousand hold 3 digits behind the point in float
  c.backward(device);
  for (float g : c.dqkv) REQUIRE(std::isfinite(g));
}

TEST_CASE("gradients in double against finite differences") {
  for (AttentionShape s : {AttentionShape{1, 100, 2, 1, 5}, AttentionShape{2, 9, 4, 2, 16}}) {
    Case<double> c(s);
    Cpu device;
    c.forward(device);
    c.backward(device);
    auto objective = [&] {
      c.forward(device);
      double sum = 0;
      for (std::size_t i = 0; i < c.out.size(); ++i) sum += c.out[i] * c.dout[i];
      return sum;
    };
    double worst = 0, size = 0;
    for (double g : c.dqkv) size = std::max(size, std::abs(g));
    for (std::size_t i = 0; i < c.qkv.size(); i += 7) {
      const double x = c.qkv[i], h = 1e-4;
      auto at = [&](double step) {
        c.qkv[i] = x + step;
        return objective();
      };
      const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);  // error h⁴
      c.qkv[i] = x;
      worst = std::max(worst, std::abs(slope - c.dqkv[i]));
    }
    CHECK(worst <= 1e-8 * size);
  }
}

TEST_CASE("the bits do not depend on threads, on alignment, or on the other sequences of the batch") {
  auto check = [](auto type) {
    using T = decltype(type);
    Case<T> one({3, 101, 4, 2, 24});
    Cpu device;
    one.forward(device);
    one.backward(device);
    for (int threads : {2, 3}) {
      Case<T> many(one.s);
      Cpu more({.threads = threads});
      many.forward(more);
      many.backward(more);
      CHECK(bytes(many.out) == bytes(one.out));
      CHECK(bytes(many.lse) == bytes(one.lse));
      CHECK(bytes(many.dqkv) == bytes(one.dqkv));
    }
    // the second sequence alone, one element further on
    const auto s = one.s;
    Case<T> alone({1, s.sequence, s.heads, s.kv_heads, s.head_size});
    auto shifted = [&](const std::vector<T>& all, std::int64_t width) {
      std::vector<T> part(static_cast<std::size_t>(s.sequence * width + 1));
      std::copy_n(all.begin() + s.sequence * width, s.sequence * width, part.begin() + 1);
      return part;
    };
    auto qkv = shifted(one.qkv, one.width()), dout = shifted(one.dout, one.heads_width());
    std::vector<T> out(dout.size()), dqkv(qkv.size());
    const auto width = one.width(), across = one.heads_width(), k = one.key_at() + 1, v = one.value_at() + 1;
    causal_attention_forward<Cpu, T>(device, alone.s, {qkv.data() + 1, width}, {qkv.data() + k, width},
                                     {qkv.data() + v, width}, {out.data() + 1, across}, alone.lse.data());
    causal_attention_backward<Cpu, T>(device, alone.s, {qkv.data() + 1, width}, {qkv.data() + k, width},
                                      {qkv.data() + v, width}, {out.data() + 1, across}, alone.lse.data(),
                                      {dout.data() + 1, across}, {dqkv.data() + 1, width}, {dqkv.data() + k, width},
                                      {dqkv.data() + v, width});
    CHECK(bytes(out) == bytes(shifted(one.out, across)));
    CHECK(bytes(dqkv) == bytes(shifted(one.dqkv, width)));
  };
  check(float{});
  check(double{});
  check(bf16{});
  check(f16{});
}

TEST_CASE("what comes later in a sequence changes no bit of what came before") {
  Case<float> whole({1, 130, 2, 2, 16});
  Cpu device;
  whole.forward(device);
  auto changed = whole;
  for (std::int64_t i = 77 * whole.width(); i < 130 * whole.width(); ++i) changed.qkv[static_cast<std::size_t>(i)] = 9;
  changed.forward(device);
  const auto before = static_cast<std::size_t>(77 * whole.heads_width());
  CHECK(std::equal(whole.out.begin(), whole.out.begin() + static_cast<std::ptrdiff_t>(before), changed.out.begin()));
  CHECK_FALSE(whole.out[before] == changed.out[before]);
}

TEST_CASE("queries and keys in parts: what attention to each part says, joined, is attention to all") {
  const std::int64_t sequence = 130, cut = 70, rest = sequence - cut;
  auto check = [&](auto type, double tolerance) {
    using T = decltype(type);
    using C = compute_t<T>;
    Case<T> whole({2, sequence, 4, 2, 24});
    Cpu device;
    whole.forward(device);
    whole.backward(device);
    const auto& s = whole.s;
    const auto width = whole.width(), across = whole.heads_width();
    const auto at = [&](const std::vector<T>& v, std::int64_t column, std::int64_t first, std::int64_t stride) {
      return HeadsView<const T>{v.data() + first * stride + column, stride, sequence * stride};
    };
    const auto lse_from = [&](std::int64_t first) {
      std::vector<C> part;
      for (std::int64_t row = 0; row < s.batch * s.heads; ++row)
        part.insert(part.end(), whole.lse.begin() + row * sequence + first, whole.lse.begin() + (row + 1) * sequence);
      return part;
    };

    // The later queries, over all keys at once: the place of the first among the keys is the offset.
    const AttentionShape later{s.batch, rest, s.heads, s.kv_heads, s.head_size, sequence, cut};
    std::vector<C> out(static_cast<std::size_t>(s.batch * rest * across)), lse(lse_from(cut).size());
    const HeadsView<C> to{out.data(), across};
    partial_attention_forward<Cpu, T>(device, later, at(whole.qkv, 0, cut, width),
                                      at(whole.qkv, whole.key_at(), 0, width),
                                      at(whole.qkv, whole.value_at(), 0, width), to, lse.data());
    std::vector<double> expected;
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (auto i = (b * sequence + cut) * across; i < (b + 1) * sequence * across; ++i)
        expected.push_back(value(whole.out[static_cast<std::size_t>(i)]));
    const auto expected_lse = lse_from(cut);
    CHECK(apart(out, expected) <= tolerance);
    CHECK(bytes(lse) == bytes(expected_lse));

    // The same from two parts of the keys: those before the cut, seen by every query, and those behind it.
    const AttentionShape before{s.batch, rest, s.heads, s.kv_heads, s.head_size, cut, cut - 1},
        own{s.batch, rest, s.heads, s.kv_heads, s.head_size};
    std::vector<C> joined(static_cast<std::size_t>(s.batch * sequence * across), C{7}), part(out.size()), part_lse(lse);
    std::vector<C> joined_lse(static_cast<std::size_t>(s.batch * s.heads * sequence), C{7});
    partial_attention_forward<Cpu, T>(device, own, at(whole.qkv, 0, cut, width),
                                      at(whole.qkv, whole.key_at(), cut, width),
                                      at(whole.qkv, whole.value_at(), cut, width),
                                      {joined.data() + cut * across, across, sequence * across}, part_lse.data());
    for (std::int64_t row = 0; row < s.batch * s.heads; ++row)
      std::copy_n(part_lse.begin() + row * rest, rest, joined_lse.begin() + row * sequence + cut);
    partial_attention_forward<Cpu, T>(
        device, before, at(whole.qkv, 0, cut, width), at(whole.qkv, whole.key_at(), 0, width),
        at(whole.qkv, whole.value_at(), 0, width), {part.data(), across}, part_lse.data());
    merge_partial_attention(device, before, part.data(), part_lse.data(), joined.data(), joined_lse.data(), sequence,
                            cut);
    std::vector<C> late;
    for (std::int64_t b = 0; b < s.batch; ++b) {
      late.insert(late.end(), joined.begin() + (b * sequence + cut) * across,
                  joined.begin() + (b + 1) * sequence * across);
      CHECK(joined[static_cast<std::size_t>(b * sequence * across)] == C{7});  // other queries are left alone
    }
    CHECK(apart(late, expected) <= tolerance);

    // Gradients: with the log-sum-exp over all keys, parts add up.
    std::vector<double> sum(whole.dqkv.size());
    const auto add = [&](const AttentionShape& shape, std::int64_t query, std::int64_t key) {
      std::vector<C> d(whole.dqkv.size());
      const auto in = [&](std::int64_t column, std::int64_t first) {
        return HeadsView<C>{d.data() + first * width + column, width, sequence * width};
      };
      const auto shift = query ? lse_from(query) : whole.lse;
      std::vector<C> compact;
      for (std::int64_t row = 0; row < s.batch * s.heads; ++row)
        compact.insert(compact.end(), shift.begin() + row * (sequence - query),
                       shift.begin() + row * (sequence - query) + shape.sequence);
      partial_attention_backward<Cpu, T>(
          device, shape, at(whole.qkv, 0, query, width), at(whole.qkv, whole.key_at(), key, width),
          at(whole.qkv, whole.value_at(), key, width), at(whole.out, 0, query, across), compact.data(),
          at(whole.dout, 0, query, across), in(0, query), in(whole.key_at(), key), in(whole.value_at(), key));
      for (std::size_t i = 0; i < d.size(); ++i) sum[i] += static_cast<double>(d[i]);
    };
    add({s.batch, cut, s.heads, s.kv_heads, s.head_size}, 0, 0);
    add(before, cut, 0);
    add(own, cut, cut);
    CHECK(apart(whole.dqkv, sum) <= 3 * tolerance);
  };
  check(double{}, 1e-14);
  check(float{}, 1e-6);
  check(bf16{}, 0x1p-8);
  check(f16{}, 0x1p-11);
}

TEST_CASE("nothing in, nothing out") {
  Cpu device;
  for (AttentionShape s : {AttentionShape{0, 5, 2, 1, 4}, AttentionShape{2, 0, 2, 1, 4}}) {
    Case<float> c(s);
    c.forward(device);
    c.backward(device);
  }
}

namespace {

/// The results of attention of 5 queries in 4 heads over 2 of 8 elements to `keys`, forward and backward; poison where
/// it writes nothing.
std::string partial(std::int64_t keys, std::int64_t offset, std::int64_t sequence = 5) {
  const AttentionShape s{2, sequence, 4, 2, 8, keys, offset};
  const auto q = numbers<float>(2 * sequence * 32, 1), dout = numbers<float>(2 * sequence * 32, 2),
             kv = numbers<float>(2 * keys * 32, 3);
  std::vector<float> out(q.size(), NAN), lse(static_cast<std::size_t>(2 * 4 * sequence), NAN), dq(out),
      dkv(kv.size(), NAN);
  const HeadsView<const float> k{kv.data(), 32}, v{kv.data() + 16, 32};
  Cpu device;
  partial_attention_forward<Cpu, float>(device, s, {q.data(), 32}, k, v, {out.data(), 32}, lse.data());
  partial_attention_backward<Cpu, float>(device, s, {q.data(), 32}, k, v, {out.data(), 32}, lse.data(),
                                         {dout.data(), 32}, {dq.data(), 32}, {dkv.data(), 32}, {dkv.data() + 16, 32});
  return bytes(out) + bytes(lse) + bytes(dq) + bytes(dkv);
}

}  // namespace

TEST_CASE("an offset of more than keys - 1 shows all keys, as keys - 1 does") {
  const auto all = partial(7, 6);
  CHECK(partial(7, 7) == all);
  CHECK(partial(7, std::numeric_limits<std::int64_t>::max()) == all);
}

TEST_CASE("no queries: gradients of keys and values are zeros") {
  CHECK(partial(3, 0, 0) == bytes(std::vector<float>(2 * 3 * 32)));
}

TEST_CASE("shapes that are none are refused in a sentence") {
  CHECK_THROWS_WITH_AS(partial(7, -1),
                       doctest::Contains("attention to 7 keys was asked for, of which the first query "
                                         "sees those up to number -1; neither can be negative"),
                       ConfigError);
  const auto refused = [](const AttentionShape& s, const char* sentence) {
    Dry dry;
    const HeadsView<float> none{nullptr, 8};
    const HeadsView<const float> in{nullptr, 8};
    CHECK_THROWS_WITH_AS((partial_attention_forward<Dry, float>(dry, s, in, in, in, none, nullptr)),
                         doctest::Contains(sentence), ConfigError);
    CHECK_THROWS_WITH_AS(
        (partial_attention_backward<Dry, float>(dry, s, in, in, in, in, nullptr, in, none, none, none)),
        doctest::Contains(sentence), ConfigError);
    CHECK(dry.flops() == 0);
  };
  refused({1, 5, 1, 1, 8, -3, 0}, "attention to -3 keys was asked for");
  refused({1, 5, 4, 3, 8}, "4 query heads cannot share 3 key heads");
}

TEST_CASE("the dry device counts the causal half and touches nothing") {
  Dry dry;
  const AttentionShape s{8, 1024, 12, 12, 64};
  auto memory = dry.pool().take_temporary(std::size_t{1} << 40, Purpose::buffers);
  auto* p = reinterpret_cast<float*>(memory.get());
  const HeadsView<float> view{p, 3 * 768};
  const HeadsView<const float> in{p, 3 * 768};
  causal_attention_forward<Dry, float>(dry, s, in, in, in, view, p);
  const double half = 8.0 * 12 * 64 * 1024 * 1025 / 2;  // multiplications of one of its products
  CHECK(dry.flops() == doctest::Approx(2 * 2 * half));
  causal_attention_backward<Dry, float>(dry, s, in, in, in, in, p, in, view, view, view);
  CHECK(dry.flops() == doctest::Approx((2 + 5) * 2 * half));

  // queries that see a part of other keys: 3 of 5 keys, 4, 5, 5, and of as many keys all
  Dry other;
  causal_attention_forward<Dry, float>(other, {1, 4, 1, 1, 1, 5, 2}, in, in, in, view, p);
  CHECK(other.flops() == 2 * 2 * (3 + 4 + 5 + 5));
  causal_attention_forward<Dry, float>(other, {1, 4, 1, 1, 1, 5, 4}, in, in, in, view, p);
  CHECK(other.flops() == 2 * 2 * (17 + 4 * 5));
}
