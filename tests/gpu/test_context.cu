// SPDX-License-Identifier: Apache-2.0
// Sequences shared by context ranks on a GPU: kernels that ask for positions, or attend to a part of the keys, are the
// CPU's; Ulysses and the ring train to the CPU's losses, with the same bits over stages and runs.
#include "backends.hpp"
#include "buffers.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/partial_attention.hpp>
#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/kernels/rope.hpp>

#include "../support/apart.hpp"
#include "../support/tiny_gpt.hpp"

using namespace zeropp;
using kernels::AttentionBackend;
using zeropp::test::doubles, zeropp::test::expect, zeropp::test::noise, zeropp::test::OnGpu, zeropp::test::same_bits;
using zeropp::test::name_of, zeropp::test::own_backends;

namespace {

const std::vector<kernels::Positions> some_positions{{}, {.first = 24}, {.first = 3, .length = 5, .second = 20}};

template <class T>
void same(const std::vector<T>& gpu, const std::vector<T>& cpu, double ulps = 4) {
  expect(gpu, doubles(cpu), ulps);
}

}  // namespace

TEST_CASE_TEMPLATE("positions of a part of the sequence", T, float, double, bf16) {
  Cuda gpu;
  Cpu cpu;
  const std::int64_t batch = 3, sequence = 8, whole = 32, width = 40;
  const auto n = static_cast<std::size_t>(batch * sequence * width);
  const auto table = noise<T>(50 * 40, 1), places = noise<T>(32 * 40, 2), x = noise<T>(n, 3);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < batch * sequence; ++i) tokens.push_back(i * 7 % 50);
  const OnGpu<std::int32_t> tokens_gpu(gpu, tokens);
  const OnGpu<T> table_gpu(gpu, table), places_gpu(gpu, places);
  for (const auto& at : some_positions) {
    auto turned = x;
    const OnGpu<T> turned_gpu(gpu, x);
    kernels::rope(cpu, turned.data(), width, batch, sequence, 2, 20, 100.0, kernels::Turn::forward, at);
    kernels::rope(gpu, turned_gpu.data(), width, batch, sequence, 2, 20, 100.0, kernels::Turn::forward, at);
    same(turned_gpu.values(), turned);

    std::vector<T> y(n);
    const OnGpu<T> y_gpu(gpu, n);
    kernels::embedding_forward(cpu, std::span<const std::int32_t>{tokens}, table.data(), 50, places.data(), sequence,
                               y.data(), width, kernels::all_rows, at);
    kernels::embedding_forward(gpu, std::span<const std::int32_t>{tokens_gpu.span()}, table_gpu.data(), 50,
                               places_gpu.data(), sequence, y_gpu.data(), width, kernels::all_rows, at);
    same(y_gpu.values(), y);
    kernels::add_rows(cpu, places.data(), sequence, y.data(), batch * sequence, width, at);
    kernels::add_rows(gpu, places_gpu.data(), sequence, y_gpu.data(), batch * sequence, width, at);
    same(y_gpu.values(), y, 8);

    std::vector<T> dtable(table.size()), dplaces(places.size());
    const OnGpu<T> dtable_gpu(gpu, dtable), dplaces_gpu(gpu, dplaces), dy_gpu(gpu, x);
    kernels::embedding_backward(cpu, std::span<const std::int32_t>{tokens}, x.data(), dtable.data(), dplaces.data(),
                                sequence, width, kernels::all_rows, at);
    kernels::embedding_backward(gpu, std::span<const std::int32_t>{tokens_gpu.span()}, dy_gpu.data(), dtable_gpu.data(),
                                dplaces_gpu.data(), sequence, width, kernels::all_rows, at);
    if constexpr (!std::is_same_v<T, bf16>) {  // which the CPU rounds after every row
      same(dtable_gpu.values(), dtable, 16);
      same(dplaces_gpu.values(), dplaces, 16);
    }

    const kernels::ElementNumbers numbers{
        .first = 2 * whole * width, .here = sequence * width, .whole = whole * width, .row = width, .positions = at};
    const Random random(3, RandomPurpose::dropout, 7, 9);
    auto dropped = x;
    const OnGpu<T> dropped_gpu(gpu, x);
    kernels::dropout(cpu, std::span{dropped}, std::span{dropped}, 0.3f, random, numbers);
    kernels::dropout(gpu, dropped_gpu.span(), dropped_gpu.span(), 0.3f, random, numbers);
    CHECK(same_bits(dropped_gpu.values(), dropped));
  }
}

TEST_CASE("rectangles are the CPU's, bit for bit, aligned or not, and where types differ") {
  Cuda gpu;
  Cpu cpu;
  const auto check = [&](auto from_type, auto to_type) {
    using A = decltype(from_type);
    using B = decltype(to_type);
    const auto from = noise<A>(4096, 1);
    const std::vector<std::vector<kernels::Rectangle>> lists{
        {{0, 64, 32, 128, 20, 64}, {1280, 64, 64 * 64, 64, 5, 64}},  // aligned
        {{1, 33, 7, 65, 30, 31}, {2000, 1, 3000, 2, 40, 1}, {0, 1, 0, 1, 0, 9}},
        {{0, 8, 0, 8, 16, 8}, {128, 8, 0, 8, 16, 8}, {256, 8, 0, 8, 16, 8}}};  // the same place, in order
    for (const auto& list : lists)
      for (const bool add : {false, true}) {
        auto to = noise<B>(6000, 2);
        const OnGpu<A> from_gpu(gpu, from);
        const OnGpu<B> to_gpu(gpu, to);
        if (add) {
          kernels::add_rectangles(cpu, list, from.data(), to.data());
          kernels::add_rectangles(gpu, list, from_gpu.data(), to_gpu.data());
        } else {
          kernels::copy_rectangles(cpu, list, from.data(), to.data());
          kernels::copy_rectangles(gpu, list, from_gpu.data(), to_gpu.data());
        }
        CHECK(same_bits(to_gpu.values(), to));
      }
  };
  check(float{}, float{});
  check(double{}, double{});
  check(bf16{}, bf16{});
  check(float{}, bf16{});
  check(std::int32_t{}, std::int32_t{});
}

namespace {

/// Losses, norms and weights of a training run on context ranks that share the GPU, and its plan against its use.
template <Stage S, class P, class D>
std::string trained(int ranks, const ::test::RunOptions& o, ContextAttention attention = ContextAttention::ulysses) {
  std::string bytes;
  run_ranks(ranks, [&](Comm comm) {
    D device;
    const Mesh mesh{comm, {.data = 1, .context = ranks}};
    Sharded<::test::Plain, S, P, D> model{
        mesh, device, ::test::Plain{o.config}, {.bucket_bytes = 1 << 12, .context_attention = attention}};
    const auto mine = ::test::record(model, mesh.data(), o).steps;
    if (comm.rank() == 0) bytes = mine;
  });
  return bytes;
}
::test::RunOptions options() {
  ::test::RunOptions o{.rows = 4, .micro_batches = 2};
  o.config = {.sequence = 16, .heads = 6};
  return o;
}

}  // namespace

TEST_CASE("Ulysses on ranks that share the GPU: the CPU's losses, the same bits over stages and runs") {
  const auto o = options();
  const auto cpu = trained<Stage::none, Fp32, Cpu>(1, o);
  for (const int ranks : {2, 4}) {
    const auto gpu = trained<Stage::none, Fp32, Cuda>(ranks, o);
    CHECK(::test::apart(gpu, cpu) < 1e-5);
    CHECK(trained<Stage::none, Fp32, Cuda>(ranks, o) == gpu);
    CHECK(trained<Stage::parameters, Fp32, Cuda>(ranks, o) == gpu);
  }
  CHECK(::test::apart(trained<Stage::gradients, Bf16, Cuda>(2, o), trained<Stage::gradients, Bf16, Cuda>(1, o)) < 2e-2);
}

TEST_CASE("a ring of ranks that share the GPU: the CPU's losses, the same bits over stages and runs") {
  const auto o = options();
  const auto cpu = trained<Stage::none, Fp32, Cpu>(1, o);
  for (const int ranks : {2, 4}) {
    const auto gpu = trained<Stage::none, Fp32, Cuda>(ranks, o, ContextAttention::ring);
    CHECK(::test::apart(gpu, cpu) < 1e-5);
    CHECK(trained<Stage::none, Fp32, Cuda>(ranks, o, ContextAttention::ring) == gpu);
    CHECK(trained<Stage::parameters, Fp32, Cuda>(ranks, o, ContextAttention::ring) == gpu);
  }
  auto tiles = o;  // heads of 64: on tensor cores
  tiles.config = {.sequence = 160, .width = 128, .heads = 2, .layers = 2};
  const auto whole = trained<Stage::gradients, Bf16, Cuda>(1, tiles);
  CHECK(::test::apart(trained<Stage::gradients, Bf16, Cuda>(2, tiles, ContextAttention::ring), whole) < 2e-2);
}

namespace {

/// ‖found − expected‖ ≤ bar · ‖size‖: for sums of many rounded numbers, large and small ones side by side.
template <class C>
void expect_near(const std::vector<C>& found, const std::vector<double>& expected, const std::vector<double>& size,
                 double bar) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double d = static_cast<double>(found[i]) - expected[i];
    difference += d * d, norm += size[i] * size[i];
  }
  CHECK(std::sqrt(difference) <= bar * std::sqrt(norm));
}

/// Attention to keys that need not be those of the queries, forward, joined with what is known, and backward, by every
/// backend of ours against the CPU's in double. Rows have gaps, sequences lie further apart than they are long.
template <class T>
void check_part(const kernels::AttentionShape& s, double ulps) {
  const auto what = text(s.batch, " x ", s.sequence, " queries, ", s.keys, " keys, offset ", s.offset, ", ", s.heads,
                         " heads over ", s.kv_heads, " of ", s.head_size);
  CAPTURE(what);
  using C = compute_t<T>;
  Cuda gpu;
  Cpu cpu;
  const auto width = s.heads * s.head_size, kv_width = s.kv_heads * s.head_size;
  const std::int64_t q_stride = width + 8, k_stride = 2 * kv_width + 16;
  const std::int64_t q_sequence = (s.sequence + 3) * q_stride, k_sequence = (s.keys + 2) * k_stride;
  const auto n = [](std::int64_t size) { return static_cast<std::size_t>(size); };
  const auto rows = [&](auto* data) { return kernels::HeadsView{data, q_stride, q_sequence}; };
  const auto keys = [&](auto* data) { return kernels::HeadsView{data, k_stride, k_sequence}; };
  const auto packed = [&](auto* data) { return kernels::HeadsView{data, width}; };
  using In = kernels::HeadsView<const T>;

  const auto q = noise<T>(n(s.batch * q_sequence), 1, 2), kv = noise<T>(n(s.batch * k_sequence), 2, 2),
             dout = noise<T>(n(s.batch * q_sequence), 3);
  const auto q64 = doubles(q), kv64 = doubles(kv), dout64 = doubles(dout);
  std::vector<double> out64(n(s.batch * s.sequence * width)), lse64(n(s.batch * s.heads * s.sequence));
  kernels::partial_attention_forward<Cpu, double>(cpu, s, rows(q64.data()), keys(kv64.data()),
                                                  keys(kv64.data() + kv_width), packed(out64.data()), lse64.data());
  // of a whole with other keys before these: the output is rounded to T, the log-sum-exp is greater
  const auto whole = noise<T>(n(s.batch * q_sequence), 4);
  std::vector<C> whole_lse;
  for (double v : lse64) whole_lse.push_back(static_cast<C>(v + 0.7));
  const auto whole64 = doubles(whole), whole_lse64 = doubles(whole_lse);
  std::vector<double> dq64(out64.size()), dkv64(n(s.batch * k_sequence));
  kernels::partial_attention_backward<Cpu, double>(
      cpu, s, rows(q64.data()), keys(kv64.data()), keys(kv64.data() + kv_width), rows(whole64.data()),
      whole_lse64.data(), rows(dout64.data()), packed(dq64.data()), keys(dkv64.data()), keys(dkv64.data() + kv_width));
  auto dkv_in_gaps = dkv64;
  for (std::size_t i = 0; i < dkv64.size(); ++i)  // which are left alone
    if (static_cast<std::int64_t>(i) % k_stride >= 2 * kv_width ||
        static_cast<std::int64_t>(i) % k_sequence / k_stride >= s.keys)
      dkv_in_gaps[i] = -77;

  const OnGpu<T> q_gpu(gpu, q), kv_gpu(gpu, kv), dout_gpu(gpu, dout), whole_gpu(gpu, whole);
  const OnGpu<C> whole_lse_gpu(gpu, whole_lse);
  const T *const q_at = q_gpu.data(), *const kv_at = kv_gpu.data();
  // Probabilities are rounded to T before they are summed in float.
  const double loss = is_half<T> ? 0x1p16 : 1;  // of bits
  const double bar = std::is_same_v<T, bf16> ? 1.2e-2 : 1.5e-3;
  for (const auto backend : is_half<T> ? own_backends(gpu, s.head_size) : std::vector{AttentionBackend::plain}) {
    INFO(name_of(backend));
    gpu.companion<kernels::CudaAttention>().options.backend = backend;
    const OnGpu<C> out(gpu, out64.size()), lse(gpu, lse64.size());
    kernels::partial_attention_forward<Cuda, T>(gpu, s, In(rows(q_at)), In(keys(kv_at)), In(keys(kv_at + kv_width)),
                                                packed(out.data()), lse.data());
    expect(out.values(), out64, ulps * loss);
    expect(lse.values(), lse64, ulps * (is_half<T> ? 64 : 1));
    if (is_half<T>) expect_near(out.values(), out64, out64, bar);
    for (int run = 0; run < 2; ++run) {
      const OnGpu<C> dq(gpu, dq64.size()), dkv(gpu, std::vector<C>(dkv64.size(), C(-77)));
      kernels::partial_attention_backward<Cuda, T>(gpu, s, In(rows(q_at)), In(keys(kv_at)), In(keys(kv_at + kv_width)),
                                                   In(rows(static_cast<const T*>(whole_gpu.data()))),
                                                   whole_lse_gpu.data(),
                                                   In(rows(static_cast<const T*>(dout_gpu.data()))), packed(dq.data()),
                                                   keys(dkv.data()), keys(dkv.data() + kv_width));
      expect(dq.values(), dq64, ulps * loss * 8);
      expect(dkv.values(), dkv_in_gaps, ulps * loss * 8);
      if (is_half<T>) expect_near(dq.values(), dq64, dq64, bar);
      if (is_half<T>) expect_near(dkv.values(), dkv_in_gaps, dkv64, bar);
    }
  }
}

}  // namespace

TEST_CASE("attention to a part of the keys: every backend of ours against the CPU's in double") {
  for (const std::int64_t size : {64, 128, 24})
    for (const auto& [sequence, keys, offset] : std::vector<std::array<std::int64_t, 3>>{
             {70, 70, 0}, {200, 200, 0}, {50, 130, 129}, {130, 50, 49}, {33, 90, 20}, {1, 1, 0}, {90, 33, 5}}) {
      const kernels::AttentionShape shape{2, sequence, 4, 2, size, keys, offset};
      check_part<bf16>(shape, 4);
      check_part<f16>(shape, 4);
      if (size == 24) {
        check_part<float>(shape, 256);
        check_part<double>(shape, 256);
      }
    }
}

TEST_CASE("parts as a ring has them; keys that no query sees, of a block and of whole blocks") {
  for (const std::int64_t size : {64, 128})
    for (const auto& [sequence, keys, offset] : std::vector<std::array<std::int64_t, 3>>{
             {512, 512, 512}, {512, 256, 255}, {256, 512, 511}, {512, 512, 0}, {64, 512, 0}, {200, 600, 150}}) {
      const kernels::AttentionShape shape{1, sequence, 4, 2, size, keys, offset};
      check_part<bf16>(shape, 4);
      check_part<f16>(shape, 4);
    }
}

TEST_CASE("keys without queries have gradients of zeros") {
  const kernels::AttentionShape none{2, 0, 4, 2, 64, 50, 0};
  check_part<bf16>(none, 4);
  check_part<float>(none, 4);
}

TEST_CASE("an offset that shows more than all keys shows all; what is negative is refused in a sentence") {
  check_part<bf16>({2, 40, 2, 1, 64, 30, std::int64_t{1} << 40}, 4);
  check_part<float>({2, 40, 2, 1, 64, 30, std::numeric_limits<std::int64_t>::max()}, 256);
  Cuda gpu;
  const kernels::HeadsView<const bf16> in{nullptr, 64};
  const kernels::HeadsView<float> out{nullptr, 64};
  for (const kernels::AttentionShape& s : {kernels::AttentionShape{1, 5, 1, 1, 64, -3, 0}, {1, 5, 1, 1, 64, 3, -2}}) {
    const auto sentence = text("attention to ", s.keys, " keys was asked for");
    CHECK_THROWS_WITH_AS((kernels::partial_attention_forward<Cuda, bf16>(gpu, s, in, in, in, out, nullptr)),
                         doctest::Contains(sentence.c_str()), ConfigError);
    CHECK_THROWS_WITH_AS(
        (kernels::partial_attention_backward<Cuda, bf16>(gpu, s, in, in, in, in, nullptr, in, out, out, out)),
        doctest::Contains(sentence.c_str()), ConfigError);
  }
}

TEST_CASE_TEMPLATE("parts of attention are joined as on the CPU", C, float, double) {
  Cuda gpu;
  Cpu cpu;
  const kernels::AttentionShape s{2, 10, 3, 3, 40};
  const std::int64_t sequence = 25, first = 15;
  const auto part = noise<C>(2 * 10 * 120, 1), part_lse = noise<C>(2 * 3 * 10, 2, 4);
  auto out = noise<C>(2 * 25 * 120, 3), lse = noise<C>(2 * 3 * 25, 4, 4);
  const OnGpu<C> part_gpu(gpu, part), part_lse_gpu(gpu, part_lse), out_gpu(gpu, out), lse_gpu(gpu, lse);
  kernels::merge_partial_attention(cpu, s, part.data(), part_lse.data(), out.data(), lse.data(), sequence, first);
  kernels::merge_partial_attention(gpu, s, static_cast<const C*>(part_gpu.data()),
                                   static_cast<const C*>(part_lse_gpu.data()), out_gpu.data(), lse_gpu.data(), sequence,
                                   first);
  expect(out_gpu.values(), doubles(out), 16);
  expect(lse_gpu.values(), doubles(lse), 16);
}
