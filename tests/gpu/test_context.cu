// SPDX-License-Identifier: Apache-2.0
// Sequences shared by context ranks on a GPU: kernels that ask for positions are the CPU's, Ulysses attention trains to
// the CPU's losses with the same bits over stages and runs, a plan is the use, and a ring is refused.
#include "buffers.hpp"

#include <string>

#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/thread.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/embedding.hpp>
#include <zeropp/kernels/rectangles.hpp>
#include <zeropp/kernels/rope.hpp>

#include "../support/apart.hpp"
#include "../support/tiny_gpt.hpp"

using namespace zeropp;
using zeropp::test::doubles, zeropp::test::noise, zeropp::test::OnGpu, zeropp::test::same_bits;

namespace {

const std::vector<kernels::Positions> some_positions{{}, {.first = 24}, {.first = 3, .length = 5, .second = 20}};

template <class T>
void same(const std::vector<T>& gpu, const std::vector<T>& cpu, double ulps = 4) {
  zeropp::test::expect(gpu, doubles(cpu), ulps);
}

}  // namespace

TEST_CASE_TEMPLATE("positions of a part of the sequence", T, float, double, bf16) {
  Cuda gpu;
  Cpu cpu;
  const std::int64_t batch = 3, context = 8, whole = 32, width = 40;
  const auto n = static_cast<std::size_t>(batch * context * width);
  const auto table = noise<T>(50 * 40, 1), places = noise<T>(32 * 40, 2), x = noise<T>(n, 3);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < batch * context; ++i) tokens.push_back(i * 7 % 50);
  const OnGpu<std::int32_t> tokens_gpu(gpu, tokens);
  const OnGpu<T> table_gpu(gpu, table), places_gpu(gpu, places);
  for (const auto& at : some_positions) {
    auto turned = x;
    const OnGpu<T> turned_gpu(gpu, x);
    kernels::rope(cpu, turned.data(), width, batch, context, 2, 20, 100.0, kernels::Turn::forward, at);
    kernels::rope(gpu, turned_gpu.data(), width, batch, context, 2, 20, 100.0, kernels::Turn::forward, at);
    same(turned_gpu.values(), turned);

    std::vector<T> y(n);
    const OnGpu<T> y_gpu(gpu, n);
    kernels::embedding_forward(cpu, std::span<const std::int32_t>{tokens}, table.data(), 50, places.data(), context,
                               y.data(), width, kernels::all_rows, at);
    kernels::embedding_forward(gpu, std::span<const std::int32_t>{tokens_gpu.span()}, table_gpu.data(), 50,
                               places_gpu.data(), context, y_gpu.data(), width, kernels::all_rows, at);
    same(y_gpu.values(), y);
    kernels::add_rows(cpu, places.data(), context, y.data(), batch * context, width, at);
    kernels::add_rows(gpu, places_gpu.data(), context, y_gpu.data(), batch * context, width, at);
    same(y_gpu.values(), y, 8);

    std::vector<T> dtable(table.size()), dplaces(places.size());
    const OnGpu<T> dtable_gpu(gpu, dtable), dplaces_gpu(gpu, dplaces), dy_gpu(gpu, x);
    kernels::embedding_backward(cpu, std::span<const std::int32_t>{tokens}, x.data(), dtable.data(), dplaces.data(),
                                context, width, kernels::all_rows, at);
    kernels::embedding_backward(gpu, std::span<const std::int32_t>{tokens_gpu.span()}, dy_gpu.data(), dtable_gpu.data(),
                                dplaces_gpu.data(), context, width, kernels::all_rows, at);
    if constexpr (!std::is_same_v<T, bf16>) {  // which the CPU rounds after every row
      same(dtable_gpu.values(), dtable, 16);
      same(dplaces_gpu.values(), dplaces, 16);
    }

    const kernels::ElementNumbers numbers{
        .first = 2 * whole * width, .here = context * width, .whole = whole * width, .row = width, .positions = at};
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
  o.config = {.context = 16, .heads = 6};
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

TEST_CASE("a ring is refused on a GPU when the model is built") {
  CHECK_THROWS_WITH_AS((trained<Stage::none, Fp32, Cuda>(2, options(), ContextAttention::ring)),
                       doctest::Contains("ring attention runs on the CPU only so far"), ConfigError);
}
