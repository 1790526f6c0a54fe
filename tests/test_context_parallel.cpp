// SPDX-License-Identifier: Apache-2.0
// Sequences shared by context ranks: attention by Ulysses and by a ring against whole sequences, with its gradients and
// its traffic; what every other layer does with its positions; batches, logits, plans; and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <vector>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/layers/swiglu.hpp>
#include <zeropp/train/sampler.hpp>

#include "support/gradients.hpp"
#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

constexpr auto ulysses = ContextAttention::ulysses, ring = ContextAttention::ring;

template <class F>
void on_ranks(int ranks, F f) {
  run_ranks(ranks, {.limit = std::chrono::seconds(60)}, f);
}

/// This rank's positions of [B, T, ...].
template <class C, class T, int R>
Tensor<T, R> here(C& ctx, const Tensor<T, R>& whole, const ContextShard& part) {
  auto shape = whole.shape();
  const auto sequence = shape[1];
  shape[1] = part.share(sequence);
  const auto row = whole.size() / (shape[0] * sequence);
  auto mine = ctx.template make<R, T>(shape);
  for (std::int64_t b = 0; b < shape[0]; ++b)
    for (std::int64_t t = 0; t < shape[1]; ++t)
      std::copy_n(whole.data() + (b * sequence + part.positions(shape[1])[t]) * row, row,
                  mine.data() + (b * shape[1] + t) * row);
  return mine;
}

/// Largest difference over the largest expected number.
template <class A, class B>
double apart(const A& got, const B& expected) {
  REQUIRE(got.size() == expected.size());
  double worst = 0, size = 1e-30;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto x = static_cast<double>(got[i]), y = static_cast<double>(expected[i]);
    if (!std::isfinite(x)) return INFINITY;
    worst = std::max(worst, std::abs(x - y));
    size = std::max(size, std::abs(y));
  }
  return worst / size;
}

struct Case {
  int ranks;
  std::int64_t sequence;
  AttentionOptions attention;
};

/// Output and gradients on context ranks against those of whole sequences.
template <class P>
void against_whole(const Case& c, ContextAttention attention, double tolerance, std::int64_t batch = 2) {
  INFO(text(name_of(attention), ", ", c.ranks, " ranks, ", c.attention.heads, " heads over ", c.attention.kv_heads,
            ", ", batch, " x ", c.sequence, " tokens"));
  on_ranks(c.ranks, [&](Comm comm) {
    Cpu cpu;
    const ContextShard part{comm, attention};
    const Extents<3> shape{batch, c.sequence, c.attention.width};
    Placed<CausalSelfAttention, P> whole{cpu, {"attn", c.attention}, {.noise = 0.2f}};
    Placed<CausalSelfAttention, P> shared{cpu, {"attn", c.attention}, {.noise = 0.2f}};
    auto ctx = whole.context(), mine = shared.context({.context_shard = part});
    const auto x = normal_tensor(ctx, shape, 3), dy = normal_tensor(ctx, shape, 4);
    auto [y, saved] = ctx.forward(whole.layer(), x);
    const auto dx = ctx.backward(whole.layer(), dy, std::move(saved));
    auto [my_y, my_saved] = mine.forward(shared.layer(), here(ctx, x, part));
    const auto my_dx = mine.backward(shared.layer(), here(ctx, dy, part), std::move(my_saved));
    CHECK(apart(my_y.span(), here(ctx, y, part).span()) <= tolerance);
    CHECK(apart(my_dx.span(), here(ctx, dx, part).span()) <= tolerance);
    for (auto* p : shared.parameters()) {
      CAPTURE(p->name);
      comm.all_reduce(shared.gradient(*p));
      CHECK(apart(shared.gradient(*p), whole.gradient(p->name)) <= tolerance);
    }
  });
}

std::vector<Case> cases() {
  return {{2, 12, {.width = 24, .heads = 4}},
          {3, 12, {.width = 24, .heads = 6, .rope_base = 10000}},
          {4, 16, {.width = 24, .heads = 6}},                                     // 1, 2, 1, 2 heads
          {4, 16, {.width = 24, .heads = 6, .kv_heads = 2, .rope_base = 10000}},  // two ranks a key head
          {4, 64, {.width = 12, .heads = 6, .kv_heads = 3}},                      // 2, 2, 1, 1 of the queries
          {4, 24, {.width = 16, .heads = 8, .kv_heads = 1}},
          {5, 20, {.width = 14, .heads = 7, .kv_heads = 7, .bias = false}},
          {3, 198, {.width = 24, .heads = 4, .kv_heads = 4}}};  // more than a tile of keys on a rank
}

}  // namespace

TEST_CASE("attention on context ranks is that of whole sequences") {
  for (const auto& c : cases()) {
    against_whole<Fp64>(c, ulysses, 1e-12);
    if (c.sequence % (2 * c.ranks) == 0) against_whole<Fp64>(c, ring, 1e-12);
  }
  const auto grouped = cases()[3];
  for (auto attention : {ulysses, ring}) {
    against_whole<Fp64>({8, 16, {.width = 16, .heads = 8, .kv_heads = 2}}, attention, 1e-12);
    against_whole<Fp64>(grouped, attention, 1e-12, 1);
    against_whole<Fp32>(grouped, attention, 1e-5);
    against_whole<Bf16>(grouped, attention, 0x1p-5);  // the same roundings to 8 bits, at other places
    against_whole<Fp16>(grouped, attention, 0x1p-8);  // and to 11
  }
}

TEST_CASE("gradients on context ranks against finite differences") {
  for (auto attention : {ulysses, ring}) {
    CAPTURE(name_of(attention));
    on_ranks(attention == ring ? 2 : 3, [&](Comm comm) {
      Cpu cpu;
      const ContextShard part{comm, attention};
      Placed<CausalSelfAttention, Fp64> model{
          cpu, {"attn", {.width = 12, .heads = 3, .kv_heads = 1, .rope_base = 100}}, {.noise = 0.5f}};
      auto ctx = model.context({.context_shard = part});
      auto x = normal_tensor(ctx, Extents<3>{2, 12, 12}, 3);
      const auto r = normal_tensor(ctx, x.shape(), 4);
      const auto objective = [&] {
        const auto y = ctx.forward(model.layer(), here(ctx, x, part)).output;
        const auto factors = here(ctx, r, part);
        double sum = 0;
        for (std::int64_t i = 0; i < y.size(); ++i) sum += y.data()[i] * factors.data()[i];
        return comm.sum(sum);
      };
      auto saved = ctx.forward(model.layer(), here(ctx, x, part)).saved;
      const auto dx = ctx.backward(model.layer(), here(ctx, r, part), std::move(saved));
      // every rank moves the same element of the whole, so all take part in each evaluation
      const auto compare_some = [&](std::span<double> at, const std::vector<double>& gradient) {
        double off = 0, size = 0;
        for (double g : gradient) size = std::max(size, std::abs(g));
        REQUIRE(size > 1e-3);
        for (std::size_t i = 0; i < at.size(); i += 5) {
          const double value = at[i], h = 1e-3;
          const auto shifted = [&](double by) {
            at[i] = value + by;
            return objective();
          };
          const double slope = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h);
          at[i] = value;
          off = std::max(off, std::abs(slope - gradient[i]));
        }
        CHECK(off <= 1e-7 * size);
      };
      std::vector<double> all(static_cast<std::size_t>(x.size()));
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t t = 0; t < dx.extent(1); ++t)
          std::copy_n(dx.data() + (b * dx.extent(1) + t) * 12, 12,
                      all.begin() + (b * 12 + part.positions(dx.extent(1))[t]) * 12);
      comm.all_reduce(std::span{all});
      compare_some(x.span(), all);
      for (auto* p : model.parameters()) {
        CAPTURE(p->name);
        std::vector<double> gradient(model.gradient(*p).begin(), model.gradient(*p).end());
        comm.all_reduce(std::span{gradient});
        compare_some(model.value(*p), gradient);
      }
    });
  }
}

TEST_CASE("heads of ranks: every query head once, with the key head that it uses, as even as key heads allow") {
  for (std::int64_t kv_heads = 1; kv_heads <= 8; ++kv_heads)
    for (std::int64_t group = 1; group <= 4; ++group)
      for (int ranks = 1; ranks <= kv_heads * group; ++ranks) {
        CAPTURE(text(kv_heads, " key heads, ", group, " queries each, ", ranks, " ranks"));
        std::int64_t next = 0, least = 1000, most = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          const auto [query, kv] = heads_of_rank(kv_heads * group, kv_heads, rank, ranks, "attn");
          CHECK(query.begin == next);
          CHECK(query.size() > 0);
          CHECK(kv == Range{query.begin / group, (query.end - 1) / group + 1});
          CHECK(query.size() % kv.size() == 0);
          next = query.end;
          least = std::min(least, query.size());
          most = std::max(most, query.size());
        }
        CHECK(next == kv_heads * group);
        CHECK(most <=
              std::max(ceil_div(kv_heads, ranks) * group, ceil_div(group, ranks / kv_heads + (ranks < kv_heads))));
        if (group == 1) CHECK(most - least <= 1);
      }
}

TEST_CASE("calls and bytes of attention are those of the papers") {
  const AttentionOptions o{.width = 48, .heads = 8, .kv_heads = 4};
  const std::int64_t batch = 2, sequence = 32, key_width = 24;
  for (auto attention : {ulysses, ring})
    for (int ranks : {2, 4}) {
      CAPTURE(name_of(attention));
      CAPTURE(ranks);
      on_ranks(ranks, [&](Comm comm) {
        Cpu cpu;
        Placed<CausalSelfAttention, Bf16> model{cpu, {"attn", o}};
        auto ctx = model.context({.context_shard = ContextShard{comm, attention}});
        const auto at = [&](Collective kind) {
          return std::pair{comm.traffic().calls_of(kind), comm.traffic().bytes_of(kind)};
        };
        const auto kind = attention == ring ? Collective::send : Collective::all_to_all;
        auto x = normal_tensor(ctx, Extents<3>{batch, sequence / ranks, o.width}, 3);
        const auto begin = at(kind);
        auto saved = ctx.forward(model.layer(), x).saved;
        const auto middle = at(kind);
        ctx.backward(model.layer(), x, std::move(saved));
        const auto end = at(kind);
        const std::int64_t rows = batch * sequence / ranks, n = ranks, bf16_bytes = 2, float_bytes = 4;
        if (attention == ulysses) {
          // q and the output of width C, k and v of the key heads' width; each rank keeps 1/n of its own
          const auto bytes = rows * (2 * o.width + 2 * key_width) * (n - 1) / n * bf16_bytes;
          CHECK(middle.first - begin.first == 2);  // q, k, v in one, and the output
          CHECK(middle.second - begin.second == bytes);
          CHECK(end.first - middle.first == 2);
          CHECK(end.second - middle.second == bytes);
        } else {
          const auto keys = (n - 1) * rows * 2 * key_width;
          CHECK(middle.first - begin.first == n - 1);
          CHECK(middle.second - begin.second == keys * bf16_bytes);
          CHECK(end.first - middle.first == 2 * (n - 1));  // keys and values again, and their gradients, in float
          CHECK(end.second - middle.second == keys * (bf16_bytes + float_bytes));
        }
        CHECK(comm.traffic().calls_of(Collective::all_gather) == 0);
        CHECK(comm.traffic().calls_of(Collective::reduce_scatter) == 0);
      });
    }
}

TEST_CASE("the ring's work is the same on every rank, and together that of whole sequences") {
  const AttentionOptions o{.width = 64, .heads = 4};
  const std::int64_t sequence = 8192;
  const auto flops = [&](const ContextShard& part, std::int64_t here) {
    Dry dry;
    Placed<CausalSelfAttention, Fp32, Dry> model{dry, {"attn", o}};
    auto ctx = model.context({.context_shard = part});
    const auto begin = dry.flops();
    auto x = ctx.make<3>({1, here, o.width});
    auto saved = ctx.forward(model.layer(), x).saved;
    ctx.backward(model.layer(), x, std::move(saved));
    return dry.flops() - begin;
  };
  const double one = flops({}, sequence);
  for (int ranks : {2, 4, 8}) {
    const auto of_rank = [&](int rank) { return flops(ContextShard{dry_comm(rank, ranks), ring}, sequence / ranks); };
    for (int rank = 1; rank < ranks; ++rank) CHECK(of_rank(rank) == doctest::Approx(of_rank(0)).epsilon(1e-3));
    CHECK(of_rank(0) * ranks >= one);
    CHECK(of_rank(0) * ranks < 1.001 * one);  // joins of what was computed in parts are linear in T
    if (ranks <= 4) CHECK(flops(ContextShard{dry_comm(1, ranks), ulysses}, sequence / ranks) * ranks == one);
  }
}

namespace {

/// The messages of a step, by kind: of the sharding group, and of the context group.
struct Sent {
  Traffic sharding, context;
};
template <Stage S>
Sent sent_in_a_step(const Comm& world, const MeshOptions& options, ContextAttention attention) {
  Cpu device;
  const Mesh mesh{world, options};
  Sharded<Plain, S> model{mesh,
                          device,
                          Plain{{.vocabulary = 64, .sequence = 16, .width = 24, .heads = 4}},
                          {.bucket_bytes = 1 << 12, .context_attention = attention}};
  FusedAdam adam{model, {}};
  auto batch = Batch::on(device, 4 / mesh.data().size(), 16);
  const std::vector<std::int32_t> ones(static_cast<std::size_t>(batch.tokens.size()), 1);
  batch.fill(ones, ones);
  batch.labels_in_step = 64;
  const auto minus = [](const Traffic& a, Traffic b) {
    for (std::size_t i = 0; i < b.calls.size(); ++i)
      b.calls[i] = a.calls[i] - b.calls[i], b.bytes[i] = a.bytes[i] - b.bytes[i];
    return b;
  };
  const auto sharding = mesh.sharding().traffic(), context = mesh.context().traffic();
  model.train(batch, {.micro_batches = 2});
  adam.step(1e-3f, clip_by_global_norm(model, 1.0f));
  return {minus(mesh.sharding().traffic(), sharding), minus(mesh.context().traffic(), context)};
}

}  // namespace

TEST_CASE("a step of a model: what ZeRO sends is that of as many data ranks, and attention adds its own") {
  on_ranks(4, [](Comm world) {
    const auto data = sent_in_a_step<Stage::gradients>(world, {.data = 4}, ulysses);
    for (auto attention : {ulysses, ring}) {
      const auto context = sent_in_a_step<Stage::gradients>(world, {.context = 2}, attention);  // and 2 data ranks
      for (auto kind : {Collective::reduce_scatter, Collective::all_gather, Collective::all_reduce}) {
        CHECK(context.sharding.calls_of(kind) == data.sharding.calls_of(kind));
        CHECK(context.sharding.bytes_of(kind) == data.sharding.bytes_of(kind));
      }
      const std::int64_t layers = 3, micro_batches = 2;
      CHECK(context.context.calls_of(Collective::all_to_all) ==
            (attention == ulysses ? layers * micro_batches * 4 : 0));
      CHECK(context.context.calls_of(Collective::send) == (attention == ring ? layers * micro_batches * 3 : 0));
      CHECK(context.context.calls_of(Collective::all_reduce) == 0);
      CHECK(context.context.calls_of(Collective::all_gather) == 1);  // the rows are compared: three numbers a rank
      CHECK(context.context.bytes_of(Collective::all_gather) == 24);
    }
  });
}

TEST_CASE("the sharding group of a mesh: data x context ranks, for any order of axes") {
  std::array<Axis, mesh_axes> order{Axis::data, Axis::tensor, Axis::pipeline, Axis::context};
  do
    on_ranks(8, [&](Comm world) {
      const Mesh mesh{world, {.data = 2, .tensor = 2, .context = 2, .order = order}};
      CHECK(mesh.sharding().size() == 4);
      CHECK(mesh.sharding().rank() == 2 * mesh.data().rank() + mesh.context().rank());
      CHECK(mesh.sharding().sum(std::int32_t{1} << (4 * mesh.tensor().rank())) == 4 << (4 * mesh.tensor().rank()));
    });
  while (std::next_permutation(order.begin(), order.end()));
  on_ranks(2, [](Comm world) {
    CHECK(Mesh{world, {.context = 2}}.sharding().size() == 2);
    CHECK(Mesh{world, {.context = 1}}.sharding().size() == 2);
    CHECK(Mesh{world, {.tensor = 2}}.sharding().size() == 1);
  });
}

TEST_CASE("embedding and dropout: the bits of whole sequences, each rank its positions, also of a shared sequence") {
  for (auto attention : {ulysses, ring})
    on_ranks(4, [&](Comm world) {
      Cpu cpu;
      const Mesh mesh{world, {.tensor = 2, .context = 2}};
      const ContextShard part{mesh.context(), attention};
      Placed<GptEmbedding> embedding{cpu, GptEmbedding{{.vocabulary = 20, .sequence = 16, .width = 6}}, {.noise = 1}};
      auto ctx = embedding.context({.step = 3, .first_sample = 5});
      const auto tokens = token_tensor(cpu, {3, 16}, 20, 1);
      const auto whole = ctx.forward(embedding.layer(), tokens).output;
      auto mine = embedding.context({.step = 3, .first_sample = 5, .context_shard = part});
      const auto y = mine.forward(embedding.layer(), here(ctx, tokens, part)).output;
      CHECK(bytes_of(y) == bytes_of(here(ctx, whole, part)));

      Dropout dropout{"drop", 0.5f};
      const auto dropped = here(ctx, dropout.forward(ctx, whole).output, part);
      auto copy = mine.make_like(y);
      std::copy_n(y.data(), y.size(), copy.data());
      CHECK(bytes_of(dropout.forward(mine, copy).output) == bytes_of(dropped));
      // tensor ranks that share this rank's 8 positions
      const TensorParallel<Dropout> shared{{.comm = mesh.tensor(), .sequence_parallel = true}, dropout};
      auto quarter = ctx.make<3>({3, 4, 6});
      auto expected = ctx.make<3>({3, 4, 6});
      for (std::int64_t b = 0; b < 3; ++b) {
        const auto from = (b * 8 + 4 * mesh.tensor().rank()) * 6;
        std::copy_n(y.data() + from, 24, quarter.data() + b * 24);
        std::copy_n(dropped.data() + from, 24, expected.data() + b * 24);
      }
      CHECK(bytes_of(TensorParallel<Dropout>{shared}.forward(mine, quarter).output) == bytes_of(expected));
    });
}

namespace {

/// A layer of a user's, that adds to each position the one before it, and does not know of context ranks.
struct Shift {
  std::array<Parameter*, 0> parameters() { return {}; }
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    return Forward{std::move(x), None{}};
  }
  template <class C, class T>
  auto backward(C&, Tensor<T, 3> dy, None) {
    return dy;
  }
};
struct Gain {
  Parameter gain{.name = "h.0.gain", .shape = {4}};
  auto parameters() { return std::array{&gain}; }
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    return Forward{std::move(x), None{}};
  }
  template <class C, class T>
  auto backward(C&, Tensor<T, 3> dy, None) {
    return dy;
  }
};

template <class L>
std::string refusal(L layer, ContextAttention attention = ulysses) {
  std::string sentence = "accepted";
  on_ranks(4, [&](Comm comm) {
    Cpu cpu;
    try {
      Sharded<L, Stage::gradients>{Mesh{comm, {.context = 4}}, cpu, layer, {.context_attention = attention}};
    } catch (const ConfigError& e) {
      if (comm.rank() == 0) sentence = e.what();
    }
  });
  return sentence;
}
bool contains(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("what cannot run on context ranks is refused in one sentence, before memory is taken") {
  const CausalSelfAttention three{"h.0.attn", {.width = 12, .heads = 3}};
  CHECK(contains(refusal(Sequential{three, Linear{"l", 12, 12}}),
                 "h.0.attn.c_attn.weight: 3 heads cannot be shared by 4 context ranks; use at most as many ranks as "
                 "heads, or ring attention"));
  CHECK(refusal(three, ring) == "accepted");
  CHECK(contains(refusal(Sequential{Linear{"l", 4, 4}, Residual<LayerNorm, Gain>{LayerNorm{"n", 4}, Gain{}}}),
                 "the layer of h.0.gain does not say that 4 context ranks can share its sequences"));
  CHECK(contains(refusal(Sequential{Linear{"l", 4, 4}, Recompute<Shift>{}}),
                 "a layer without parameters does not say that 4 context ranks can share its sequences: declare"));
  CHECK(refusal(SwiGlu{"s", 4, 8}) == "accepted");

  // with one context rank nothing has to be said
  on_ranks(2, [](Comm comm) {
    Cpu cpu;
    CHECK_NOTHROW(
        Sharded<Sequential<Linear, Shift>, Stage::gradients>{Mesh{comm}, cpu, Sequential{Linear{"l", 4, 4}, Shift{}}});
  });
}

TEST_CASE("sequences that the chunks do not divide, or longer than the table of positions, are refused by name") {
  on_ranks(4, [](Comm comm) {
    Cpu cpu;
    const TinyConfig config{.sequence = 16, .heads = 4};
    const Mesh mesh{comm, {.context = 4}};
    Sharded<Plain, Stage::gradients> model{mesh, cpu, Plain{config}, {.context_attention = ring}};
    Sharded<Plain, Stage::gradients> other{mesh, cpu, Plain{config}};
    const auto filled = [&](std::int64_t sequence) {
      auto batch = Batch::on(cpu, 1, sequence);
      const std::vector<std::int32_t> ones(static_cast<std::size_t>(sequence), 1);
      batch.fill(ones, ones);
      return batch;
    };
    auto batch = filled(12);
    CHECK_THROWS_WITH_AS(model.train(batch),
                         doctest::Contains("sequences of 12 tokens cannot be shared by 4 context "
                                           "ranks: ring attention needs a multiple of 8"),
                         ConfigError);
    const std::int64_t row = 3;
    std::vector<float> out(61);
    CHECK_THROWS_WITH_AS(model.logits(batch.tokens, {&row, 1}, out), doctest::Contains("a multiple of 8"), ConfigError);
    auto odd = filled(14);
    CHECK_THROWS_WITH_AS(other.evaluate(odd), doctest::Contains("ulysses attention needs a multiple of 4"),
                         ConfigError);
    auto long_one = filled(32);
    CHECK_THROWS_WITH_AS(other.evaluate(long_one), doctest::Contains("holds 16 positions, got sequences of 32 tokens"),
                         ConfigError);
  });
}

TEST_CASE("ranks that choose different attention are refused when the model is built") {
  try {
    on_ranks(2, [](Comm comm) {
      Cpu cpu;
      Sharded<Plain, Stage::none> model{
          Mesh{comm, {.context = 2}}, cpu, Plain{{.heads = 4}}, {.context_attention = comm.rank() ? ring : ulysses}};
    });
    FAIL("was accepted");
  } catch (const CommError& e) {
    CHECK(contains(e.what(), "built another model than"));
  }
}

TEST_CASE("context ranks that were given different rows end with a sentence rather than train on them") {
  for (bool by_place : {false, true}) try {
      on_ranks(4, [&](Comm comm) {
        Cpu cpu;
        const Mesh mesh{comm, {.context = 2}};
        Sharded<Plain, Stage::none> model{mesh, cpu, Plain{{.sequence = 16, .heads = 4}}};
        auto batch = Batch::on(cpu, 2, 16);
        std::vector<std::int32_t> tokens(32, 1);
        if (by_place)
          batch.first_sample = 2 * comm.rank();
        else
          tokens[16] = 1 + comm.rank();  // the second row
        batch.fill(tokens, tokens);
        model.train(batch);
      });
      FAIL("was accepted");
    } catch (const CommError& e) {
      CHECK(contains(e.what(), "context rank 1 was given another batch than context rank 0"));
    }
}

TEST_CASE("evaluation, logits, and a loop of one's own on context ranks") {
  const TinyConfig config{.sequence = 16, .heads = 4, .dropout = 0.2f};
  const std::vector<std::int64_t> rows{31, 0, 7, 8, 16};
  struct Seen {
    double loss, own_loss;
    std::vector<float> logits = std::vector<float>(5 * 61), last = std::vector<float>(61);
    std::vector<std::int32_t> text;
  };
  const auto run = [&](const Mesh& mesh, ContextAttention attention) {
    Cpu cpu;
    Sharded<Plain, Stage::parameters, Fp32> model{mesh, cpu, Plain{config}, {.context_attention = attention}};
    auto batch = Batch::on(cpu, 2, 16);
    const auto tokens = token_tensor(cpu, {2, 16}, 61, 5), labels = token_tensor(cpu, {2, 16}, 61, 6, 5);
    batch.fill(tokens.span(), labels.span());
    Seen seen;
    seen.loss = model.evaluate(batch).mean();
    model.logits(batch.tokens, rows, seen.logits);
    for (std::int64_t row = 0; row < 32; ++row)  // on another rank each time, in one recorded program
      model.logits(batch.tokens, {&row, 1}, seen.last);
    seen.text = sample(model, {5, 3}, 20, 16, 61, {.temperature = 0});
    const auto part = model.local_batch(batch);
    auto ctx = model.context({.loss_weight = 1.0 / 26, .labels = part.labels});
    auto [loss, saved] = model.forward(ctx, part.tokens);
    model.backward(ctx, 1.0f, std::move(saved));
    model.finish_gradients();
    seen.own_loss = model.comm().sum(loss.sum()) / static_cast<double>(model.comm().sum(loss.count()));
    CHECK(seen.own_loss == doctest::Approx(model.train(batch).mean()).epsilon(1e-6));
    CHECK_THROWS_WITH_AS(model.logits(batch.tokens, {rows.data(), 0}, seen.last), doctest::Contains("room for 61"),
                         ConfigError);
    const std::int64_t beyond = 32;
    CHECK_THROWS_WITH_AS(model.logits(batch.tokens, {&beyond, 1}, seen.last), doctest::Contains("row 32"), ConfigError);
    return seen;
  };
  const auto one = run(Mesh{}, ulysses);
  for (auto attention : {ulysses, ring})
    on_ranks(4, [&](Comm comm) {
      const auto mine = run(Mesh{comm, {.context = 4}}, attention);
      CHECK(mine.loss == doctest::Approx(one.loss).epsilon(1e-6));
      CHECK(mine.own_loss == doctest::Approx(one.own_loss).epsilon(1e-6));
      CHECK(apart(mine.logits, one.logits) < 1e-5);
      CHECK(apart(mine.last, one.last) < 1e-5);
      CHECK(mine.text == one.text);
    });
}

TEST_CASE("micro-batches without rows take part in every exchange") {
  for (auto attention : {ulysses, ring})
    on_ranks(2, [&](Comm comm) {
      Cpu cpu;
      const TinyConfig config{.sequence = 16, .heads = 4, .dropout = 0};
      Sharded<Plain, Stage::parameters> model{
          Mesh{comm, {.context = 2}}, cpu, Plain{config}, {.context_attention = attention}};
      auto batch = Batch::on(cpu, 1, 16);
      const auto tokens = token_tensor(cpu, {1, 16}, 61, 5);
      batch.fill(tokens.span(), tokens.span());
      const auto loss = model.train(batch).mean(), norm = global_norm(model);
      CHECK(model.train(batch, {.micro_batches = 3}).mean() == loss);
      CHECK(global_norm(model) == doctest::Approx(norm).epsilon(1e-6));
    });
}

TEST_CASE("the dry plan is the use, to the byte") {
  const auto measure = [](const Comm& world, auto& device, ContextAttention attention) {
    using D = std::decay_t<decltype(device)>;
    const Mesh mesh{world, {.data = 1, .context = 4}};
    Sharded<Recomputed, Stage::gradients, Fp32, D> model{
        mesh, device, Recomputed{{.sequence = 16, .heads = 4}}, {.context_attention = attention}};
    auto batch = Batch::on(device, 4, 16);
    if constexpr (!D::dry) {
      std::fill_n(batch.tokens.data(), batch.tokens.size(), 3);
      std::fill_n(batch.labels.data(), batch.labels.size(), 4);
    }
    batch.labels_in_step = 64;
    for (int step = 0; step < 2; ++step) model.train(batch, {.micro_batches = 2});
    model.evaluate(batch);
    return std::tuple{device.pool().kept(), device.pool().peak(), device.pool().planned()};
  };
  for (auto attention : {ulysses, ring})
    on_ranks(4, [&](Comm comm) {
      Cpu cpu;
      Dry dry;
      const auto use = measure(comm, cpu, attention);
      CHECK(measure(dry_comm(comm.rank(), 4), dry, attention) == use);
      CHECK(cpu.pool().allocated() == cpu.pool().planned());
    });
}
