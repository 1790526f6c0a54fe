// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU: every backend against the textbook in double, on packed tensors with gaps that must stay as they
// are; plain kernels against finite differences; the same bits in two runs; what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <zeropp/kernels/attention.hpp>

#include "backends.hpp"

using namespace zeropp;
using kernels::AttentionBackend;
using kernels::AttentionShape;
using kernels::CudaAttention;
using zeropp::test::name_of;

namespace {

constexpr std::int64_t gap = 8;  ///< elements between rows that belong to nobody
constexpr float guard = -77;     ///< what stands there

template <class T>
double value(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}

/// Inputs and results of one case on the host. Rows of qkv and of its gradient have a gap behind them, and so have
/// those of out and of its gradient.
template <class T>
struct Case {
  AttentionShape s;
  std::vector<T> qkv, dout, out, dqkv;
  std::vector<compute_t<T>> lse;

  Case(AttentionShape shape, std::uint64_t seed) : s(shape) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<float> uniform(-2, 2);
    const auto fill = [&](std::vector<T>& v, std::int64_t n) {
      v.resize(static_cast<std::size_t>(n));
      for (auto& x : v) x = static_cast<T>(uniform(random));
    };
    fill(qkv, rows() * width());
    fill(dout, rows() * heads_width());
    poison(out, heads_width());
    poison(dqkv, width());
    lse.resize(static_cast<std::size_t>(s.batch * s.heads * s.sequence));
  }
  std::int64_t rows() const { return s.batch * s.sequence; }
  std::int64_t heads_width() const { return s.heads * s.head_size + gap; }
  std::int64_t width() const { return (s.heads + 2 * s.kv_heads) * s.head_size + gap; }
  std::int64_t key_at() const { return s.heads * s.head_size; }
  std::int64_t value_at() const { return key_at() + s.kv_heads * s.head_size; }

  /// NaN where a result belongs, the guard in the gaps.
  void poison(std::vector<T>& v, std::int64_t stride) const {
    v.resize(static_cast<std::size_t>(rows() * stride));
    for (std::int64_t i = 0; i < rows() * stride; ++i)
      v[static_cast<std::size_t>(i)] = static_cast<T>(i % stride < stride - gap ? NAN : guard);
  }
  bool gaps_kept(const std::vector<T>& v, std::int64_t stride) const {
    for (std::int64_t i = 0; i < rows() * stride; ++i)
      if (i % stride >= stride - gap && value(v[static_cast<std::size_t>(i)]) != guard) return false;
    return true;
  }

  /// Forward and backward on the GPU; results come back to the host. Gradients may be left out.
  void run(Cuda& gpu, AttentionBackend backend, bool backward = true) {
    gpu.companion<CudaAttention>().options.backend = backend;
    const auto there = [&]<class E>(const std::vector<E>& host) {
      Tensor<E, 1> tensor(gpu.pool(), {static_cast<std::int64_t>(host.size())});
      gpu.upload(tensor.data(), host.data(), host.size() * sizeof(E));
      return tensor;
    };
    const auto back = [&](auto& host, const auto& tensor) {
      gpu.download(host.data(), tensor.data(), host.size() * sizeof(host[0]));
    };
    poison(out, heads_width());
    poison(dqkv, width());
    std::fill(lse.begin(), lse.end(), static_cast<compute_t<T>>(NAN));
    const auto in = there(qkv), g = there(dout), o = there(out), d = there(dqkv);
    const auto l = there(lse);
    const T* const p = in.data();
    T* const to = d.data();
    const auto w = width(), h = heads_width();
    kernels::causal_attention_forward<Cuda, T>(gpu, s, {p, w}, {p + key_at(), w}, {p + value_at(), w}, {o.data(), h},
                                               l.data());
    if (backward)
      kernels::causal_attention_backward<Cuda, T>(gpu, s, {p, w}, {p + key_at(), w}, {p + value_at(), w}, {o.data(), h},
                                                  l.data(), {g.data(), h}, {to, w}, {to + key_at(), w},
                                                  {to + value_at(), w});
    back(out, o), back(lse, l), back(dqkv, d);
  }
};

/// The textbook in double, with the same strides.
struct Reference {
  std::vector<double> out, lse, dqkv;

  Reference() = default;
  template <class T>
  explicit Reference(const Case<T>& c) : out(c.out.size()), lse(c.lse.size()), dqkv(c.dqkv.size()) {
    const auto& s = c.s;
    const auto size = s.head_size, w = c.width(), ow = c.heads_width();
    std::vector<double> x(c.qkv.size()), g(c.dout.size());
    std::transform(c.qkv.begin(), c.qkv.end(), x.begin(), [](T v) { return value(v); });
    std::transform(c.dout.begin(), c.dout.end(), g.begin(), [](T v) { return value(v); });
    const double scale = 1 / std::sqrt(static_cast<double>(size));
    const auto dot = [&](const double* a, const double* b) {
      double sum = 0;
      for (std::int64_t d = 0; d < size; ++d) sum += a[d] * b[d];
      return sum;
    };
    std::vector<double> p(static_cast<std::size_t>(s.sequence));
    for (std::int64_t b = 0; b < s.batch; ++b)
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const auto kv = h / (s.heads / s.kv_heads), first = b * s.sequence;
        const auto q_at = first * w + h * size, k_at = first * w + c.key_at() + kv * size,
                   v_at = first * w + c.value_at() + kv * size;
        for (std::int64_t t = 0; t < s.sequence; ++t) {
          double top = -INFINITY, sum = 0;
          const auto n = static_cast<std::size_t>(t + 1);
          for (std::size_t j = 0; j < n; ++j) {
            p[j] = scale * dot(&x[static_cast<std::size_t>(q_at + t * w)],
                               &x[static_cast<std::size_t>(k_at + static_cast<std::int64_t>(j) * w)]);
            top = std::max(top, p[j]);
          }
          for (std::size_t j = 0; j < n; ++j) sum += p[j] = std::exp(p[j] - top);
          lse[static_cast<std::size_t>((b * s.heads + h) * s.sequence + t)] = top + std::log(sum);
          double* const o = &out[static_cast<std::size_t>((first + t) * ow + h * size)];
          const double* const of = &g[static_cast<std::size_t>((first + t) * ow + h * size)];
          for (std::size_t j = 0; j < n; ++j) {
            p[j] /= sum;
            const double* const v = &x[static_cast<std::size_t>(v_at + static_cast<std::int64_t>(j) * w)];
            for (std::int64_t d = 0; d < size; ++d) o[d] += p[j] * v[d];
          }
          const double delta = dot(o, of);
          for (std::size_t j = 0; j < n; ++j) {
            const auto row = static_cast<std::int64_t>(j) * w;
            const double* const k = &x[static_cast<std::size_t>(k_at + row)];
            const double* const q = &x[static_cast<std::size_t>(q_at + t * w)];
            const double ds = scale * p[j] * (dot(of, &x[static_cast<std::size_t>(v_at + row)]) - delta);
            for (std::int64_t d = 0; d < size; ++d) {
              dqkv[static_cast<std::size_t>(q_at + t * w + d)] += ds * k[d];
              dqkv[static_cast<std::size_t>(k_at + row + d)] += ds * q[d];
              dqkv[static_cast<std::size_t>(v_at + row + d)] += p[j] * of[d];
            }
          }
        }
      }
  }
};

/// ‖found − expected‖ / (‖expected‖ + a hundredth of √n) over columns [from, from + count) of rows; NaN is infinite.
template <class T>
double error(const std::vector<T>& found, const std::vector<double>& expected, std::int64_t stride, std::int64_t from,
             std::int64_t count) {
  double difference = 0, norm = 0, n = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto column = static_cast<std::int64_t>(i) % stride;
    if (column < from || column >= from + count) continue;
    const double d = value(found[i]) - expected[i];
    if (!(std::abs(d) < INFINITY)) return INFINITY;
    difference += d * d, norm += expected[i] * expected[i], ++n;
  }
  return std::sqrt(difference) / (std::sqrt(norm) + 0.01 * std::sqrt(n));
}

struct Bars {
  double out, gradients, lse;
};
/// In bf16 the probabilities and the gradients of the scores are rounded to 8 bits before they are multiplied, and
/// every result is rounded once: about 2⁻⁹ each, 2e-3 to 3e-3 together (in f16, of 11 bits, an eighth); inputs are
/// exact. A wrong element of a row of a hundred would show as a tenth.
constexpr Bars bf16_bars{8e-3, 1.2e-2, 2e-3}, f16_bars{1e-3, 1.5e-3, 5e-4}, float_bars{2e-6, 5e-6, 1e-5},
    double_bars{1e-14, 1e-13, 1e-13};

template <class T>
void compare(const Case<T>& c, const Reference& r, Bars bars) {
  const auto size = c.s.head_size, q = c.s.heads * size, kv = c.s.kv_heads * size;
  CHECK(error(c.out, r.out, c.heads_width(), 0, q) < bars.out);
  CHECK(error(c.dqkv, r.dqkv, c.width(), 0, q) < bars.gradients);
  CHECK(error(c.dqkv, r.dqkv, c.width(), c.key_at(), kv) < bars.gradients);
  CHECK(error(c.dqkv, r.dqkv, c.width(), c.value_at(), kv) < bars.gradients);
  double worst = 0;
  for (std::size_t i = 0; i < r.lse.size(); ++i) {
    const double e = std::abs(static_cast<double>(c.lse[i]) - r.lse[i]);
    worst = e <= worst ? worst : (std::isnan(e) ? INFINITY : e);
  }
  CHECK(worst < bars.lse);
  CHECK(c.gaps_kept(c.out, c.heads_width()));
  CHECK(c.gaps_kept(c.dqkv, c.width()));
}

/// Those that can do heads of this size on this GPU; cuDNN's, which compiles something for every shape, if `slow`.
std::vector<AttentionBackend> backends(const Cuda& gpu, std::int64_t size, bool slow = true) {
  auto all = zeropp::test::own_backends(gpu, size);
  if (slow) all.push_back(AttentionBackend::best);
  if (slow && kernels::make_attention_provider) all.push_back(AttentionBackend::cudnn);
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

const std::uint64_t seed = std::random_device{}();

}  // namespace

TEST_CASE("every backend computes what the textbook says, in bf16") {
  Cuda gpu;
  std::mt19937_64 random(seed);
  const auto up_to = [&](std::int64_t n) {
    return 1 + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  for (std::int64_t size : {16, 64, 80, 128})
    for (std::int64_t sequence : {1, 7, 63, 64, 65, 127, 128, 191, 200, 1024}) {
      const bool large = sequence == 1024;
      const auto kv_heads = large ? 1 : up_to(2), group = large ? 2 : up_to(3);
      const AttentionShape s{large ? 1 : up_to(3), sequence, kv_heads * group, kv_heads, size};
      Case<bf16> c(s, random());
      const Reference reference(c);
      for (auto backend : backends(gpu, size, sequence % 64 != 63)) {
        CAPTURE(seed);
        INFO(name_of(backend), ": B ", s.batch, " T ", s.sequence, " H ", s.heads, " Hkv ", s.kv_heads, " D ", size);
        if (backend == AttentionBackend::cudnn) {
          try {
            c.run(gpu, backend);
          } catch (const ConfigError& refused) {
            MESSAGE(refused.what());
            if (sequence >= 64 && (size == 64 || size == 128)) FAIL_CHECK("cuDNN has this one");
            continue;
          }
        } else {
          c.run(gpu, backend);
        }
        compare(c, reference, bf16_bars);
        const auto out = c.out, dqkv = c.dqkv;
        const auto lse = c.lse;
        c.run(gpu, backend);
        CHECK(same_bits(out, c.out));
        CHECK(same_bits(lse, c.lse));
        CHECK(same_bits(dqkv, c.dqkv));
      }
    }
}

TEST_CASE("the same in f16") {
  Cuda gpu;
  for (std::int64_t size : {16, 64, 128})
    for (std::int64_t sequence : {1, 65, 200}) {
      const AttentionShape s{2, sequence, 4, 2, size};
      Case<f16> c(s, seed);
      const Reference reference(c);
      for (auto backend : backends(gpu, size)) {
        CAPTURE(seed);
        INFO(name_of(backend), ": T ", sequence, " D ", size);
        if (backend == AttentionBackend::cudnn && (size == 16 || sequence == 1)) continue;
        c.run(gpu, backend);
        compare(c, reference, f16_bars);
        const auto out = c.out, dqkv = c.dqkv;
        c.run(gpu, backend);
        CHECK(same_bits(out, c.out));
        CHECK(same_bits(dqkv, c.dqkv));
      }
    }
}

TEST_CASE("large scores neither overflow nor lose the probabilities") {
  Cuda gpu;
  for (auto backend : backends(gpu, 64, false)) {
    Case<bf16> c({1, 150, 2, 1, 64}, seed);
    for (auto& x : c.qkv) x = bf16(4 * static_cast<float>(x));
    INFO(name_of(backend));
    const Reference reference(c);
    c.run(gpu, backend);
    compare(c, reference, bf16_bars);
  }
}

TEST_CASE("more pieces of work than multiprocessors, and heads that share keys: warpgroups as tiles") {
  Cuda gpu;
  if (gpu.properties().compute_capability != 90) return;
  // 20 pieces and more for each multiprocessor are mixed in other ways than fewer; two pieces a head take little memory
  // and differ in length.
  const std::int64_t many = ceil_div(20 * gpu.properties().multiprocessors, 2 * 8) + 1;
  for (const AttentionShape& s :
       {AttentionShape{7, 700, 8, 8, 64}, AttentionShape{20, 1024, 8, 8, 64}, AttentionShape{7, 700, 8, 2, 128},
        AttentionShape{4, 1500, 8, 4, 128}, AttentionShape{many, 130, 8, 8, 64}}) {
    CAPTURE(seed);
    INFO("B ", s.batch, " T ", s.sequence, " Hkv ", s.kv_heads, " D ", s.head_size);
    Case<bf16> c(s, seed);
    c.run(gpu, AttentionBackend::tiles);
    Reference tiles;
    const auto values = [](const auto& from) {
      std::vector<double> to;
      for (auto x : from) to.push_back(value(x));
      return to;
    };
    tiles.out = values(c.out), tiles.lse = values(c.lse), tiles.dqkv = values(c.dqkv);
    c.run(gpu, AttentionBackend::warpgroups);
    compare(c, tiles, bf16_bars);
    const auto out = c.out, dqkv = c.dqkv;
    for (int again = 0; again < 3; ++again) {
      c.run(gpu, AttentionBackend::warpgroups);
      CHECK(same_bits(out, c.out));
      CHECK(same_bits(dqkv, c.dqkv));
    }
  }
}

TEST_CASE("plain kernels in float and double") {
  Cuda gpu;
  for (std::int64_t size : {5, 64})
    for (std::int64_t sequence : {1, 31, 70}) {
      CAPTURE(seed);
      INFO("T ", sequence, " D ", size);
      Case<float> single({2, sequence, 4, 2, size}, seed);
      single.run(gpu, AttentionBackend::best);
      auto bars = float_bars;
      if (sequence == 1) bars.gradients = 1e-4;  // of one score: zero, but for the rounding of dP − δ
      compare(single, Reference(single), bars);
      Case<double> twice({2, sequence, 3, 1, size}, seed + 1);
      twice.run(gpu, AttentionBackend::best);
      compare(twice, Reference(twice), double_bars);
    }
}

TEST_CASE("gradients of the plain kernels against finite differences in double") {
  Cuda gpu;
  Case<double> c({1, 40, 4, 2, 12}, seed);
  c.run(gpu, AttentionBackend::plain);
  const auto gradient = c.dqkv;
  const auto loss = [&] {
    c.run(gpu, AttentionBackend::plain, false);
    double sum = 0;
    for (std::int64_t i = 0; i < c.rows() * c.heads_width(); ++i)
      if (i % c.heads_width() < c.heads_width() - gap)
        sum += c.out[static_cast<std::size_t>(i)] * c.dout[static_cast<std::size_t>(i)];
    return sum;
  };
  std::mt19937_64 random(seed);
  for (int n = 0; n < 60; ++n) {
    const auto row = static_cast<std::int64_t>(random() % 40),
               column = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(c.width() - gap));
    auto& x = c.qkv[static_cast<std::size_t>(row * c.width() + column)];
    const double before = x, step = 1e-5;
    x = before + step;
    const double above = loss();
    x = before - step;
    const double below = loss();
    x = before;
    CAPTURE(seed);
    CHECK(gradient[static_cast<std::size_t>(row * c.width() + column)] ==
          doctest::Approx((above - below) / (2 * step)).epsilon(1e-6).scale(1));
  }
}

TEST_CASE("a backend that cannot is refused in a sentence, and best finds one that can") {
  Cuda gpu;
  Case<bf16> odd({1, 5, 1, 1, 20}, seed);
  CHECK_THROWS_WITH_AS(odd.run(gpu, AttentionBackend::tiles), doctest::Contains("heads of 64 or 128"), ConfigError);
  CHECK_THROWS_WITH_AS(odd.run(gpu, AttentionBackend::cudnn), doctest::Contains("attention by cuDNN was asked for"),
                       ConfigError);
  CHECK_NOTHROW(odd.run(gpu, AttentionBackend::best));
  compare(odd, Reference(odd), bf16_bars);
  DryCuda older({}, {.compute_capability = 80});
  CudaAttention attention(older);
  attention.options.backend = AttentionBackend::tiles;
  CHECK_THROWS_WITH_AS(attention.choose({.s = {1, 5, 1, 1, 64}, .k = {.stride = 68}}),
                       doctest::Contains("heads whose rows begin at multiples of 16 bytes"), ConfigError);
  CHECK_THROWS_WITH_AS(attention.choose({.s = {1, 1 << 29, 1, 1, 64}}),
                       doctest::Contains("less than 2^30 queries and keys of a sequence, found 1073741824"),
                       ConfigError);
  attention.options.backend = AttentionBackend::warpgroups;
  CHECK_THROWS_WITH_AS(attention.choose({.s = {1, 5, 1, 1, 64}}),
                       doctest::Contains("a GPU of compute capability 9.0, found 8.0"), ConfigError);
  const AttentionShape uneven{1, 5, 4, 3, 16};
  float* const none = nullptr;
  CHECK_THROWS_WITH_AS((kernels::causal_attention_forward<Cuda, float>(gpu, uneven, {none, 16}, {none, 16}, {none, 16},
                                                                       {none, 16}, none)),
                       doctest::Contains("4 query heads cannot share 3 key heads"), ConfigError);
}

namespace {

/// The peak of one forward and backward on a device that runs or one that plans.
template <class D>
std::size_t peak(D& device, const AttentionShape& s, kernels::CudaAttentionOptions options) {
  device.template companion<CudaAttention>().options = options;
  Pool::Program program(device.pool(), "attention");
  const auto width = (s.heads + 2 * s.kv_heads) * s.head_size, h = s.heads * s.head_size, rows = s.batch * s.sequence;
  {
    const Tensor<bf16, 1> in(device.pool(), {rows * width}), d(device.pool(), {rows * width}),
        out(device.pool(), {rows * h}), g(device.pool(), {rows * h});
    const Tensor<float, 1> lse(device.pool(), {rows * s.heads});
    const bf16* const p = in.data();
    bf16* const to = d.data();
    const auto key_at = h, value_at = h + s.kv_heads * s.head_size;
    kernels::causal_attention_forward<D, bf16>(device, s, {p, width}, {p + key_at, width}, {p + value_at, width},
                                               {out.data(), h}, lse.data());
    kernels::causal_attention_backward<D, bf16>(device, s, {p, width}, {p + key_at, width}, {p + value_at, width},
                                                {out.data(), h}, lse.data(), {g.data(), h}, {to, width},
                                                {to + key_at, width}, {to + value_at, width});
  }
  program.finish();
  device.synchronize();
  return device.pool().peak().total();
}

}  // namespace

TEST_CASE("a plan asks for the memory that a run takes") {
  for (const AttentionShape& s : {AttentionShape{2, 256, 4, 4, 64}, AttentionShape{1, 1000, 4, 2, 128},
                                  AttentionShape{3, 70, 2, 2, 80}, AttentionShape{0, 70, 2, 2, 64}})
    for (auto backend : backends(Cuda(), s.head_size))
      for (bool deterministic : {true, false}) {
        Cuda gpu;
        DryCuda plan;
        INFO("T ", s.sequence, " D ", s.head_size, " ", name_of(backend), deterministic ? " deterministic" : "");
        const auto found = peak(gpu, s, {backend, deterministic});
        CHECK(peak(plan, s, {backend, deterministic}) == found);
        if (!gpu.companion<CudaAttention>().refusal().empty()) MESSAGE(gpu.companion<CudaAttention>().refusal());
      }
}
