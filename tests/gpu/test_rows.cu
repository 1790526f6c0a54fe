// SPDX-License-Identifier: Apache-2.0
// Kernels of the GPU that go row by row, and Adam, against the CPU's in double: widths that fill no vector, rows too
// wide for registers, pointers that are not aligned, results in place of arguments, the same bits twice.
#include "buffers.hpp"

#include <string>
#include <tuple>

#include <zeropp/kernels/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>
#include <zeropp/train/optimizers/adamw.hpp>
#include <zeropp/train/optimizers/lion.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/norm.hpp>
#include <zeropp/kernels/reduce.hpp>

using namespace zeropp;
using namespace zeropp::test;

namespace {

struct NormShape {
  std::int64_t n, width, shift;
};
const std::vector<NormShape> norm_shapes{{1, 1, 0},    {5, 7, 0},      {70, 33, 1},     {1, 768, 0},   {1003, 768, 0},
                                         {9, 768, 1},  {130, 1600, 0}, {2700, 1600, 0}, {21, 5000, 0}, {3, 5000, 1},
                                         {6, 8192, 0}, {3, 20000, 0},  {0, 768, 0},     {5, 0, 0},     {600, 64, 0}};

/// Inputs and outputs of a norm on the GPU, and the same by the CPU in double.
template <class X, class W, class G>
struct NormCase {
  using C = compute_t<X>;
  NormCase(Cuda& device, NormShape shape)
      : gpu(device),
        s(shape),
        count(static_cast<std::size_t>(s.n * s.width)),
        columns(static_cast<std::size_t>(s.width)),
        rows(static_cast<std::size_t>(s.n)),
        x(noise<X>(count, 1, 2)),
        dy(noise<X>(count, 2)),
        onto(noise<X>(count, 3)),
        gamma(noise<W>(columns, 4, 1.5)),
        beta(noise<W>(columns, 5)),
        before(noise<G>(columns, 6)) {}

  template <bool Center>
  void check() {
    const double slack = 16 + 4 * std::sqrt(static_cast<double>(s.width));
    const auto x64 = doubles(x), dy64 = doubles(dy), gamma64 = doubles(gamma), beta64 = doubles(beta);
    const double epsilon = static_cast<double>(C(1e-5f));
    std::vector<double> y64(count), mean64(rows), rstd64(rows), dx64(count), dgamma64(columns), dbeta64(columns);
    Cpu cpu;
    const OnGpu<X> x_gpu(gpu, x, s.shift), y(gpu, count, s.shift), dy_gpu(gpu, dy, s.shift),
        onto_gpu(gpu, onto, s.shift);
    const OnGpu<W> gamma_gpu(gpu, gamma, s.shift), beta_gpu(gpu, beta, s.shift);
    const OnGpu<C> mean(gpu, rows), rstd(gpu, rows);
    if constexpr (Center) {
      kernels::layer_norm_forward(cpu, x64.data(), gamma64.data(), beta64.data(), epsilon, y64.data(), mean64.data(),
                                  rstd64.data(), s.n, s.width);
      kernels::layer_norm_forward(gpu, x_gpu.data(), gamma_gpu.data(), beta_gpu.data(), C(1e-5f), y.data(), mean.data(),
                                  rstd.data(), s.n, s.width);
      if (s.width) expect(mean.values(), mean64, slack);
    } else {
      kernels::rms_norm_forward(cpu, x64.data(), gamma64.data(), epsilon, y64.data(), rstd64.data(), s.n, s.width);
      kernels::rms_norm_forward(gpu, x_gpu.data(), gamma_gpu.data(), C(1e-5f), y.data(), rstd.data(), s.n, s.width);
    }
    expect(y.values(), y64, slack, Center && s.width == 1 ? 300 : 4);
    if (s.width) expect(rstd.values(), rstd64, slack, s.width == 1 ? 300 : 1);
    // The backward of both starts from the GPU's mean and rstd, so that it alone is compared.
    if (s.width) mean64 = Center ? doubles(mean.values()) : mean64, rstd64 = doubles(rstd.values());
    const auto cpu_backward = [&](double* dgamma, double* dbeta) {
      if constexpr (Center)
        kernels::layer_norm_backward(cpu, dy64.data(), x64.data(), gamma64.data(), mean64.data(), rstd64.data(),
                                     dx64.data(), dgamma, dbeta, s.n, s.width);
      else
        kernels::rms_norm_backward(cpu, dy64.data(), x64.data(), gamma64.data(), rstd64.data(), dx64.data(), dgamma,
                                   s.n, s.width);
    };
    const auto gpu_backward = [&](X* dx, G* dgamma, G* dbeta, const X* add, kernels::Into into = kernels::Into::add) {
      if constexpr (Center)
        kernels::layer_norm_backward(gpu, dy_gpu.data(), x_gpu.data(), gamma_gpu.data(), mean.data(), rstd.data(), dx,
                                     dgamma, dbeta, s.n, s.width, add, into);
      else
        kernels::rms_norm_backward(gpu, dy_gpu.data(), x_gpu.data(), gamma_gpu.data(), rstd.data(), dx, dgamma, s.n,
                                   s.width, add, into);
    };
    const double size = s.width == 1 ? 1000 : 8, sums = 4 + std::sqrt(static_cast<double>(s.n));
    cpu_backward(dgamma64.data(), dbeta64.data());
    auto with_onto = dx64, dgamma_after = dgamma64, dbeta_after = dbeta64;
    for (std::size_t i = 0; i < count; ++i) with_onto[i] += value(onto[i]);
    for (std::size_t i = 0; i < columns; ++i) dgamma_after[i] += value(before[i]), dbeta_after[i] += value(before[i]);

    const OnGpu<X> dx(gpu, count, s.shift), again(gpu, count, s.shift);
    const OnGpu<G> dgamma(gpu, before, s.shift), dbeta(gpu, before, s.shift), dgamma2(gpu, before), dbeta2(gpu, before);
    gpu_backward(dx.data(), dgamma.data(), dbeta.data(), nullptr);
    expect(dx.values(), dx64, slack, size);
    expect(dgamma.values(), dgamma_after, 64, sums);
    if (Center) expect(dbeta.values(), dbeta_after, 64, sums);
    gpu_backward(again.data(), dgamma2.data(), dbeta2.data(), onto_gpu.data());
    expect(again.values(), with_onto, slack, size);
    CHECK(same_bits(dgamma.values(), dgamma2.values()));
    CHECK(same_bits(dbeta.values(), dbeta2.values()));

    const OnGpu<G> fresh_gamma(gpu, columns), fresh_beta(gpu, columns);
    gpu_backward(nullptr, fresh_gamma.data(), fresh_beta.data(), nullptr, kernels::Into::overwrite);
    expect(fresh_gamma.values(), dgamma64, 64, sums);
    if (Center) expect(fresh_beta.values(), dbeta64, 64, sums);

    const auto wanted = again.values();  // dx may be left out, be onto, or be dy
    gpu_backward(nullptr, dgamma2.data(), dbeta2.data(), nullptr);
    gpu_backward(onto_gpu.data(), nullptr, nullptr, onto_gpu.data());
    CHECK(same_bits(onto_gpu.values(), wanted));
    gpu_backward(dy_gpu.data(), nullptr, nullptr, nullptr);
    CHECK(same_bits(dy_gpu.values(), dx.values()));
    dgamma_after = doubles(dgamma.values());
    for (std::size_t i = 0; i < columns; ++i) dgamma_after[i] += dgamma64[i];
    expect(dgamma2.values(), dgamma_after, 64, sums);
  }

  Cuda& gpu;
  NormShape s;
  std::size_t count, columns, rows;
  std::vector<X> x, dy, onto;
  std::vector<W> gamma, beta;
  std::vector<G> before;
};

template <class X, class W, class G>
void check_norms() {
  Cuda gpu;
  for (const auto& s : norm_shapes) {
    CAPTURE(s.n);
    CAPTURE(s.width);
    CAPTURE(s.shift);
    NormCase<X, W, G> one(gpu, s);
    one.template check<true>();
    NormCase<X, W, G> other(gpu, s);
    other.template check<false>();
  }
}

}  // namespace

TEST_CASE("norms of bf16, gradients in float") { check_norms<bf16, bf16, float>(); }
TEST_CASE("norms of bf16, gradients in bf16") { check_norms<bf16, bf16, bf16>(); }
TEST_CASE("norms of f16, gradients in float") { check_norms<f16, f16, float>(); }
TEST_CASE("norms of float") { check_norms<float, float, float>(); }
TEST_CASE("norms of double") { check_norms<double, double, double>(); }

namespace {

std::vector<std::int32_t> tokens_of(std::size_t n, std::int32_t vocabulary, int kind) {
  const Random random(31, RandomPurpose::test, static_cast<std::uint64_t>(kind));
  std::vector<std::int32_t> tokens(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double u = random.uniform(i);  // kind 0: each as often; 1: as in texts, some very often; 2: one only
    tokens[i] = kind == 2 ? vocabulary - 1
                          : static_cast<std::int32_t>((kind ? std::pow(u, 6) : u) * static_cast<double>(vocabulary));
  }
  return tokens;
}

template <class Y, class G>
void check_embeddings() {
  Cuda gpu;
  Cpu cpu;
  constexpr std::int32_t vocabulary = 301;
  struct Shape {
    std::int64_t batch, sequence, width, shift;
  };
  for (const auto& s : {Shape{3, 50, 64, 0}, Shape{2, 7, 33, 0}, Shape{5, 100, 768, 0}, Shape{1, 3, 1, 1},
                        Shape{2, 9, 5000, 0}, Shape{2, 40, 64, 1}, Shape{40, 100, 8, 0}, Shape{0, 4, 8, 0}})
    for (const int kind : {0, 1, 2})
      for (const auto& held : {kernels::all_rows, Range{100, 220}}) {
        CAPTURE(s.width);
        CAPTURE(kind);
        CAPTURE(held.begin);
        const auto n = static_cast<std::size_t>(s.batch * s.sequence), w = static_cast<std::size_t>(s.width);
        const auto held_rows = held.end > vocabulary ? vocabulary : held.size();
        const auto tokens = tokens_of(n, vocabulary, kind);
        const auto table = noise<Y>(static_cast<std::size_t>(held_rows) * w, 1);
        const auto places = noise<Y>(static_cast<std::size_t>(s.sequence) * w, 2), dy = noise<Y>(n * w, 3);
        const auto dtable = noise<G>(table.size(), 4), dplaces = noise<G>(places.size(), 5);
        const OnGpu<std::int32_t> tokens_gpu(gpu, tokens, 1);
        const std::span<const std::int32_t> on_gpu(tokens_gpu.span()), on_cpu(tokens);
        const OnGpu<Y> table_gpu(gpu, table, s.shift), places_gpu(gpu, places, s.shift), dy_gpu(gpu, dy, s.shift);
        const auto table64 = doubles(table), places64 = doubles(places), dy64 = doubles(dy);
        std::vector<double> wanted(n * w);

        for (const bool with_places : {true, false}) {
          const OnGpu<Y> y(gpu, n * w, s.shift);
          kernels::embedding_forward(cpu, on_cpu, table64.data(), vocabulary, with_places ? places64.data() : nullptr,
                                     s.sequence, wanted.data(), s.width, held);
          kernels::embedding_forward(gpu, on_gpu, table_gpu.data(), vocabulary,
                                     with_places ? places_gpu.data() : nullptr, s.sequence, y.data(), s.width, held);
          expect(y.values(), wanted, 1);
        }
        {
          const OnGpu<Y> y(gpu, dy, s.shift);
          auto sum = dy64;
          kernels::add_rows(cpu, places64.data(), s.sequence, sum.data(), s.batch * s.sequence, s.width);
          kernels::add_rows(gpu, places_gpu.data(), s.sequence, y.data(), s.batch * s.sequence, s.width);
          expect(y.values(), sum, 1);
        }
        auto dtable64 = doubles(dtable), dplaces64 = doubles(dplaces);
        kernels::embedding_backward(cpu, on_cpu, dy64.data(), dtable64.data(), dplaces64.data(), s.sequence, s.width,
                                    held);
        std::vector<G> first, first_places;
        for (const int run : {0, 1}) {
          const OnGpu<G> dtable_gpu(gpu, dtable, s.shift), dplaces_gpu(gpu, dplaces, s.shift);
          kernels::embedding_backward(gpu, on_gpu, dy_gpu.data(), dtable_gpu.data(), dplaces_gpu.data(), s.sequence,
                                      s.width, held);
          if (run == 0) {
            first = dtable_gpu.values(), first_places = dplaces_gpu.values();
            const double size = 1 + std::sqrt(static_cast<double>(n));
            expect(first, dtable64, 64, size);
            expect(first_places, dplaces64, 64, size);
            // The bits of a row do not depend on which others are held.
            if (held.end <= vocabulary) {
              std::vector<G> all(static_cast<std::size_t>(vocabulary) * w);
              std::copy(dtable.begin(), dtable.end(), all.begin() + held.begin * s.width);
              const OnGpu<G> all_gpu(gpu, all, s.shift);
              kernels::embedding_backward(gpu, on_gpu, dy_gpu.data(), all_gpu.data(), static_cast<G*>(nullptr),
                                          s.sequence, s.width);
              const auto got = all_gpu.values();
              CHECK(same_bits(first,
                              std::vector<G>(got.begin() + held.begin * s.width, got.begin() + held.end * s.width)));
            }
          } else {
            CHECK(same_bits(dtable_gpu.values(), first));
            CHECK(same_bits(dplaces_gpu.values(), first_places));
          }
        }
      }
}

}  // namespace

TEST_CASE("embeddings of bf16, gradients in float") { check_embeddings<bf16, float>(); }
TEST_CASE("embeddings of bf16, gradients in bf16") { check_embeddings<bf16, bf16>(); }
TEST_CASE("embeddings of f16, gradients in float") { check_embeddings<f16, float>(); }
TEST_CASE("embeddings of float") { check_embeddings<float, float>(); }
TEST_CASE("embeddings of double") { check_embeddings<double, double>(); }

TEST_CASE("the first bad token is named where the host waits, and nothing is read or written for it") {
  Cuda gpu;
  constexpr std::int64_t width = 8;
  for (const std::int32_t bad : {-1, 100, 2'000'000'000}) {
    std::vector<std::int32_t> tokens(5000, 99);
    tokens[4321] = bad;
    tokens[4900] = -7;
    const OnGpu<std::int32_t> on_gpu(gpu, tokens);
    const OnGpu<float> table(gpu, noise<float>(100 * width, 1)), y(gpu, 5000 * width);
    const OnGpu<float> dtable(gpu, std::vector<float>(100 * width));
    kernels::embedding_forward(gpu, std::span<const std::int32_t>(on_gpu.span()), table.data(), 100,
                               static_cast<const float*>(nullptr), 1, y.data(), width);
    kernels::embedding_backward(gpu, std::span<const std::int32_t>(on_gpu.span()), y.data(), dtable.data(),
                                static_cast<float*>(nullptr), 1, width);
    const auto sentence =
        "token " + std::to_string(bad) + " at place 4321 of the batch is outside the vocabulary of 100";
    CHECK_THROWS_WITH_AS(gpu.synchronize(), doctest::Contains(sentence.c_str()), DataError);
    const auto sums = dtable.values();
    CHECK(std::all_of(sums.begin(), sums.end(), [](float v) { return v == 0; }));
    CHECK_NOTHROW(gpu.synchronize());
  }
  kernels::check_tokens(gpu, std::span<const std::int32_t>{}, 5);
  CHECK_NOTHROW(gpu.synchronize());
}

TEST_CASE("what is set aside for sorting is enough") {
  for (const unsigned n : {1u, 100u, 3000u, 65536u, 1u << 20, 1u << 24}) {
    std::size_t bytes = 0;
    std::uint32_t* none = nullptr;
    cuda_check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, none, none, none, none, n, 0, 32, cudaStream_t{}),
               "cub");
    CAPTURE(n);
    CAPTURE(bytes);
    CHECK(bytes <= kernels::detail::sort_bytes(n));
  }
}

namespace {

template <class W, class G, class M>
struct AdamCase {
  AdamCase(std::size_t n)
      : w(noise<W>(n, 1)), kept(has_master<W> ? n : 0), g(noise<G>(n, 2)), m(noise<M>(n, 3)), v(noise<M>(n, 4)) {
    const Random random(9, RandomPurpose::test, 5);
    for (std::size_t i = 0; i < kept.size(); ++i)
      if constexpr (std::is_same_v<W, f16>)
        kept[i] = static_cast<float>(random.normal(i));
      else
        kept[i] = static_cast<std::int16_t>(random.bits(i));
    for (auto& second : v) second = std::abs(second);
  }
  std::vector<W> w;
  std::vector<kept_t<W>> kept;
  std::vector<G> g;
  std::vector<M> m, v;

  template <class D>
  static void step(D& device, std::span<W> w, std::span<kept_t<W>> kept, std::span<const G> g, std::span<M> m,
                   std::span<M> v, std::span<const kernels::UpdateRun> runs, const kernels::UpdateStep& s) {
    kernels::update(device, AdamW{}, kernels::UpdateSpan<W, G, M, 2>{w, kept, g, {m, v}}, runs, s);
  }
  /// Master weights, by the formula with the same fused operations.
  std::vector<double> reference(std::span<const kernels::UpdateRun> runs, const kernels::UpdateStep& s) {
    const auto f = AdamW{}.at<M>(s);
    const auto scale = static_cast<M>(s.gradient_scale);
    std::vector<double> masters(w.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      M master;
      if constexpr (has_master<W>)
        master = master_of_t<W>{w[i], kept[i]}.master();
      else
        master = w[i];
      for (const auto& run : runs) {
        if (static_cast<std::int64_t>(i) < run.range.begin || static_cast<std::int64_t>(i) >= run.range.end) continue;
        const auto decay =
            static_cast<M>(1 - static_cast<double>(s.learning_rate) * static_cast<double>(run.weight_decay));
        const volatile M grad = static_cast<M>(static_cast<compute_t<G>>(g[i])) * scale;
        const volatile M square = grad * grad, old = v[i] * f.beta2, change = f.rate;
        m[i] = std::fma(grad - m[i], f.one_minus_beta1, m[i]);
        v[i] = std::fma(square, f.one_minus_beta2, old);
        const volatile M up = change * m[i];
        const volatile M quotient = up / std::fma(std::sqrt(v[i]), f.root, f.epsilon);
        master = std::fma(master, decay, -quotient);
      }
      masters[i] = static_cast<double>(master);
      if constexpr (has_master<W>) {
        const auto [weight, beside] = master_of_t<W>::from(master);
        w[i] = weight, kept[i] = beside;
      } else {
        w[i] = master;
      }
    }
    return masters;
  }
};

template <class W, class G, class M>
void check_adam() {
  Cuda gpu;
  const kernels::UpdateStep s{.learning_rate = 1e-3f, .number = 3, .gradient_scale = 0.37f};
  for (const std::size_t n : {std::size_t{1}, std::size_t{7}, std::size_t{33}, std::size_t{4096}, std::size_t{50003}})
    for (const std::int64_t shift : {0, 1}) {
      CAPTURE(n);
      CAPTURE(shift);
      AdamCase<W, G, M> host(n);
      const auto count = static_cast<std::int64_t>(n);
      std::vector<kernels::UpdateRun> runs;  // more than one launch takes, of odd sizes, with a hole and an empty one
      const auto part = std::max<std::int64_t>(1, count / 150);
      for (std::int64_t at = 0; at < count; at += part)
        if (at / part != 3 || count < 100)
          runs.push_back({{at, std::min(count, at + part)}, at / part % 2 ? 0.1f : 0.0f});
      runs.insert(runs.begin() + 1, kernels::UpdateRun{{runs[0].range.end, runs[0].range.end}, 9.0f});
      const OnGpu<W> w(gpu, host.w, shift);
      const OnGpu<kept_t<W>> kept(gpu, host.kept, shift);
      const OnGpu<G> g(gpu, host.g, shift);
      const OnGpu<M> m(gpu, host.m, shift), v(gpu, host.v, shift);
      AdamCase<W, G, M>::step(gpu, w.span(), kept.span(), std::span<const G>(g.span()), m.span(), v.span(), runs, s);
      // The same in two shards, cut at an odd place.
      const OnGpu<W> w2(gpu, host.w);
      const OnGpu<kept_t<W>> kept2(gpu, host.kept);
      const OnGpu<M> m2(gpu, host.m), v2(gpu, host.v);
      const auto cut = count / 3;
      for (const auto& range : {Range{0, cut}, Range{cut, count}}) {
        std::vector<kernels::UpdateRun> mine;
        for (const auto& run : runs) {
          const auto here = run.range.clipped(range);
          mine.push_back({{here.begin - range.begin, here.end - range.begin}, run.weight_decay});
        }
        std::erase_if(mine, [](auto& run) { return run.range.size() == 0; });
        const auto of = [&](auto span) {
          return span.empty()
                     ? span
                     : span.subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.size()));
        };
        AdamCase<W, G, M>::step(gpu, of(w2.span()), of(kept2.span()), of(std::span<const G>(g.span())), of(m2.span()),
                                of(v2.span()), mine, s);
      }
      CHECK(same_bits(w.values(), w2.values()));
      CHECK(same_bits(kept.values(), kept2.values()));
      CHECK(same_bits(m.values(), m2.values()));
      CHECK(same_bits(v.values(), v2.values()));
      host.reference(runs, s);
      CHECK(same_bits(w.values(), host.w));
      CHECK(same_bits(kept.values(), host.kept));
      CHECK(same_bits(m.values(), host.m));
      CHECK(same_bits(v.values(), host.v));
    }
}

/// On a device: what the clip says there counts as what the host says, and nothing changes where it is not finite.
template <class W, class G, class M>
void check_clipped_adam() {
  Cuda gpu;
  constexpr std::int64_t n = 5003;
  kernels::UpdateStep s{.learning_rate = 1e-3f, .number = 3};
  const kernels::UpdateRun run{{0, n}, 0.1f};
  AdamCase<W, G, M> host(n);
  const OnGpu<G> g(gpu, host.g);
  const auto step = [&] {
    const OnGpu<W> w(gpu, host.w);
    const OnGpu<kept_t<W>> kept(gpu, host.kept);
    const OnGpu<M> m(gpu, host.m), v(gpu, host.v);
    AdamCase<W, G, M>::step(gpu, w.span(), kept.span(), std::span<const G>(g.span()), m.span(), v.span(),
                            std::span<const kernels::UpdateRun>(&run, 1), s);
    return std::tuple{w.values(), m.values(), v.values()};
  };
  s.gradient_scale = 0.25f * 0.37f;
  const auto wanted = step();
  s.gradient_scale = 0.25f;
  const OnGpu<GradientNorm> clip(gpu, std::vector<GradientNorm>{{.norm = 3, .factor = 0.37f}, {.finite = false}});
  s.clip = clip.data();
  const auto clipped = step();
  CHECK(same_bits(std::get<0>(clipped), std::get<0>(wanted)));
  CHECK(same_bits(std::get<1>(clipped), std::get<1>(wanted)));
  CHECK(same_bits(std::get<2>(clipped), std::get<2>(wanted)));
  s.clip = clip.data() + 1;
  const auto skipped = step();
  CHECK(same_bits(std::get<0>(skipped), host.w));
  CHECK(same_bits(std::get<1>(skipped), host.m));
  CHECK(same_bits(std::get<2>(skipped), host.v));
}

}  // namespace

TEST_CASE("Adam is clipped by what the GPU knows, and leaves all as it is where that is not finite") {
  check_clipped_adam<float, float, float>();
  check_clipped_adam<bf16, float, float>();
}

TEST_CASE("Adam has the bits of its formula, whole or in shards: float") { check_adam<float, float, float>(); }
TEST_CASE("Adam, bf16 with split masters") { check_adam<bf16, float, float>(); }
TEST_CASE("Adam, bf16 with gradients in bf16") { check_adam<bf16, bf16, float>(); }
TEST_CASE("Adam, f16 beside whole masters") { check_adam<f16, float, float>(); }
TEST_CASE("Adam, double") { check_adam<double, double, double>(); }

TEST_CASE("Adam is the CPU's, up to what its compiler fuses") {
  Cuda gpu;
  Cpu cpu;
  AdamCase<float, float, float> host(20000);
  const kernels::UpdateStep s{.learning_rate = 1e-3f, .gradient_scale = 0.5f};
  const OnGpu<float> w(gpu, host.w), g(gpu, host.g), m(gpu, host.m), v(gpu, host.v);
  const kernels::UpdateRun run{{0, 20000}, 0.1f};
  AdamCase<float, float, float>::step(gpu, w.span(), {}, std::span<const float>(g.span()), m.span(), v.span(),
                                      std::span<const kernels::UpdateRun>(&run, 1), s);
  AdamCase<float, float, float>::step(cpu, host.w, {}, host.g, host.m, host.v,
                                      std::span<const kernels::UpdateRun>(&run, 1), s);
  expect(w.values(), doubles(host.w), 4);
  expect(m.values(), doubles(host.m), 2);
  expect(v.values(), doubles(host.v), 2);
}

TEST_CASE("a rule of one slot has the bits of its formula: Lion over bf16 with split masters") {
  Cuda gpu;
  constexpr std::size_t n = 50003;
  AdamCase<bf16, float, float> host(n);
  const Lion rule{};
  const kernels::UpdateStep s{.learning_rate = 1e-3f, .gradient_scale = 0.37f};
  const std::vector<kernels::UpdateRun> runs{{{0, 20001}, 0.1f, 0.5f}, {{20001, n}, 0.0f}};
  const OnGpu<bf16> w(gpu, host.w);
  const OnGpu<std::int16_t> kept(gpu, host.kept);
  const OnGpu<float> g(gpu, host.g), m(gpu, host.m);
  kernels::update(gpu, rule, kernels::UpdateSpan<bf16, float, float, 1>{w.span(), kept.span(), g.span(), {m.span()}},
                  std::span<const kernels::UpdateRun>(runs), s);
  for (const auto& run : runs) {
    const auto step = kernels::detail::element_step<float>(s, run);
    for (auto i = static_cast<std::size_t>(run.range.begin); i < static_cast<std::size_t>(run.range.end); ++i) {
      const volatile float grad = host.g[i] * s.gradient_scale, old = host.m[i] * rule.beta1,
                           kept_part = host.m[i] * rule.beta2;
      const float mixture = std::fma(grad, 1 - rule.beta1, old);
      const float direction = static_cast<float>((mixture > 0) - (mixture < 0));
      const float master =
          std::fma(SplitMaster{host.w[i], host.kept[i]}.master(), step.decay, -(direction * step.rate));
      host.m[i] = std::fma(grad, 1 - rule.beta2, kept_part);
      const auto split = SplitMaster::from(master);
      host.w[i] = split.weight, host.kept[i] = split.remainder;
    }
  }
  CHECK(same_bits(w.values(), host.w));
  CHECK(same_bits(kept.values(), host.kept));
  CHECK(same_bits(m.values(), host.m));
}

TEST_CASE("Adam with stochastic rounding: the CPU's bits, whole or in shards") {
  Cuda gpu;
  Cpu cpu;
  constexpr std::uint64_t seed = 7, number = 12;
  const kernels::UpdateStep s{.learning_rate = 1e-2f, .number = number, .gradient_scale = 0.37f};
  using Runs = std::vector<kernels::UpdateRun>;
  for (const std::size_t n : {std::size_t{1}, std::size_t{7}, std::size_t{33}, std::size_t{4096}, std::size_t{50003}})
    for (const std::int64_t shift : {0, 1})
      for (const bool still : {true, false}) {
        CAPTURE(n);
        CAPTURE(shift);
        CAPTURE(still);
        AdamCase<bf16, bf16, float> host(n);
        if (still) {  // decay alone: one product, which no compiler fuses with anything; the CPU's bits are the GPU's
          std::fill(host.g.begin(), host.g.end(), bf16(0.0f));
          std::fill(host.m.begin(), host.m.end(), 0.0f);
        }
        const auto count = static_cast<std::int64_t>(n), part = std::max<std::int64_t>(1, count / 150);
        Runs runs;  // more than one launch takes, of odd sizes, with a hole and an empty one; the last is long
        for (std::int64_t at = 0, end = 0; at < count; at = end) {
          end = at / part < 100 ? std::min(count, at + part) : count;
          if (at / part != 3 || count < 100)
            runs.push_back({{at, end}, at / part % 2 ? 0.1f : 0.3f, 1, static_cast<std::uint64_t>(at / part / 2), 3 * at});
        }
        runs.insert(runs.begin() + 1, {{runs[0].range.end, runs[0].range.end}, 9.0f, 1, 1, 0});
        const auto step = [&](auto& device, std::span<bf16> w, std::span<const bf16> g, std::span<float> m,
                              std::span<float> v, const Runs& of) {
          kernels::update_stochastic(device, AdamW{}, kernels::UpdateSpan<bf16, bf16, float, 2>{w, {}, g, {m, v}},
                                     std::span<const kernels::UpdateRun>(of), s, seed);
        };
        const OnGpu<bf16> w(gpu, host.w, shift), g(gpu, host.g, shift);
        const OnGpu<float> m(gpu, host.m, shift), v(gpu, host.v, shift);
        step(gpu, w.span(), g.span(), m.span(), v.span(), runs);
        // The same in two shards, cut at an odd place.
        const OnGpu<bf16> w2(gpu, host.w);
        const OnGpu<float> m2(gpu, host.m), v2(gpu, host.v);
        const auto cut = count / 3;
        for (const auto& range : {Range{0, cut}, Range{cut, count}}) {
          Runs mine;
          for (const auto& run : runs) {
            const auto here = run.range.clipped(range);
            if (here.size() > 0)
              mine.push_back({{here.begin - range.begin, here.end - range.begin},
                              run.weight_decay,
                              run.rate,
                              run.stream,
                              run.first + (here.begin - run.range.begin)});
          }
          const auto of = [&](auto span) {
            return span.subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.size()));
          };
          step(gpu, of(w2.span()), of(g.span()), of(m2.span()), of(v2.span()), mine);
        }
        CHECK(same_bits(w.values(), w2.values()));
        CHECK(same_bits(m.values(), m2.values()));
        CHECK(same_bits(v.values(), v2.values()));
        if (still) {
          step(cpu, host.w, host.g, host.m, host.v, runs);
        } else {  // the formula with the GPU's fused operations, rounded by the bits of Random
          std::vector<kernels::UpdateRun> plain;
          for (const auto& run : runs) plain.push_back({run.range, run.weight_decay});
          AdamCase<float, bf16, float> wide(n);
          std::copy(host.w.begin(), host.w.end(), wide.w.begin());
          wide.reference(plain, s);
          for (const auto& run : runs) {
            const Random random(seed, RandomPurpose::stochastic_rounding, run.stream, number);
            for (auto i = run.range.begin; i < run.range.end; ++i)
              host.w[static_cast<std::size_t>(i)] =
                  rounded_stochastically(wide.w[static_cast<std::size_t>(i)],
                                         random.half(static_cast<std::uint64_t>(run.first + i - run.range.begin)));
          }
          host.m = wide.m, host.v = wide.v;
        }
        CHECK(same_bits(w.values(), host.w));
        CHECK(same_bits(m.values(), host.m));
        CHECK(same_bits(v.values(), host.v));
      }
}

TEST_CASE("a plan asks for the memory that the GPU takes") {
  const auto arena = [](auto& device) {
    constexpr std::int64_t n = 3000, width = 768;
    const Tensor<float, 1> x(device.pool(), {n * width}), column(device.pool(), {width}), of_row(device.pool(), {n});
    const Tensor<std::int32_t, 1> tokens(device.pool(), {n});
    const std::vector<std::int32_t> zeros(n);
    device.upload(tokens.data(), zeros.data(), 4 * zeros.size());
    Pool::Program program(device.pool(), "kernels");
    kernels::layer_norm_backward(device, x.data(), x.data(), column.data(), of_row.data(), of_row.data(), x.data(),
                                 column.data(), column.data(), n, width);
    kernels::embedding_backward(device, std::span<const std::int32_t>(tokens.span()), x.data(), column.data(),
                                static_cast<float*>(nullptr), 1, width);
    kernels::sum_of_squares(device, x.span());
    program.finish();
    return device.pool().arena();
  };
  Cuda gpu;
  DryCuda plan;
  if (gpu.properties().multiprocessors == plan.properties().multiprocessors) CHECK(arena(gpu) == arena(plan));
}
