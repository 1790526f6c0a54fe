// SPDX-License-Identifier: Apache-2.0
// Every rule of TensorParallel against the unsplit layer, in double and float, at 1, 2 and 4 ranks, with and without a
// shared sequence; the first weights; what the ranks exchange; what is refused.
//
// How it is measured: the error of a tensor is the greatest difference over the greatest element of the whole tensor.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include <zeropp/comm/dry.hpp>
#include <zeropp/comm/mesh.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

#include "support/placed.hpp"

using namespace test;

namespace {

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<RmsNorm, SwiGlu>,
                          Residual<LayerNorm, Mlp, Dropout>> {
  explicit Block(const std::string& h)
      : Sequential{{LayerNorm{h + "ln_1", 16},
                    CausalSelfAttention{h + "attn", {.width = 16, .heads = 4, .kv_heads = 4, .rope_base = 100}},
                    Dropout{h + "drop_1", 0.2f}},
                   {RmsNorm{h + "ln_2", 16}, SwiGlu{h + "glu", 16, 24}},
                   {LayerNorm{h + "ln_3", 16}, Mlp{h + "mlp", 16, 32}, Dropout{h + "drop_2", 0.3f}}} {}
};

struct Gpt : Sequential<GptEmbedding, Dropout, Repeat<Recompute<Block>>, LayerNorm, LmHead> {
  explicit Gpt(std::int64_t vocabulary = 40, std::int64_t used = 29)
      : Sequential{GptEmbedding{{.vocabulary = vocabulary, .sequence = 12, .width = 16, .vocabulary_used = used}},
                   Dropout{"drop", 0.1f}, blocks(), LayerNorm{"ln_f", 16},
                   LmHead{"lm_head", vocabulary, 16, {.tied_to = "wte.weight", .vocabulary_used = used}}} {}
  static Repeat<Recompute<Block>> blocks() {
    Repeat<Recompute<Block>> all;
    for (int i = 0; i < 2; ++i) all.children.push_back({Block{text("h.", i, ".")}});
    return all;
  }
};

/// A layer of a user: each position alone, so no rule is needed.
struct Gain {
  static constexpr LayerTraits traits{.per_position = true};
  Parameter gain{.name = "gain", .shape = {16}, .init = Init::normal(1)};
  auto parameters() { return std::array{&gain}; }
  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    auto y = ctx.make_like(x);
    for (std::int64_t i = 0; i < x.size(); ++i) y.data()[i] = T(x.data()[i] * ctx.value(gain)[i % 16]);
    return Forward{y, ctx.save(x)};
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, Tensor<T, 3> x) {
    auto dx = ctx.make_like(x);
    for (std::int64_t i = 0; i < x.size(); ++i) {
      dx.data()[i] = T(dy.data()[i] * ctx.value(gain)[i % 16]);
      ctx.gradient(gain)[i % 16] += dy.data()[i] * x.data()[i];
    }
    return dx;
  }
};

/// A layer of a user with a rule of its own, below.
struct Squeeze : Sequential<Linear, Linear> {
  Squeeze() : Sequential{Linear{"narrow", 16, 8}, Linear{"widen", 8, 16}} {}
};

}  // namespace

template <>
struct zeropp::TensorParallel<Squeeze>
    : Sequential<TensorParallel<Linear, SplitBy::columns>, TensorParallel<Linear, SplitBy::rows>> {
  TensorParallel(const TensorOptions& o, const Squeeze& whole)
      : Sequential{{o, std::get<0>(whole.children)}, {o, std::get<1>(whole.children)}} {}
};

namespace {

/// A part of a tensor: of `axis`, the one that `rank` of `ranks` holds; all of it for axis -1.
template <class T, int R>
Tensor<T, R> part_of(Pool& pool, const Tensor<T, R>& whole, int axis, int rank, int ranks) {
  auto shape = whole.shape();
  std::int64_t outer = 1, inner = 1;
  if (axis >= 0) {
    shape[static_cast<std::size_t>(axis)] /= ranks;
    for (int i = 0; i < axis; ++i) outer *= shape[static_cast<std::size_t>(i)];
    for (int i = axis; i < R; ++i) inner *= shape[static_cast<std::size_t>(i)];
  } else {
    inner = whole.size();
    rank = 0;
    ranks = 1;
  }
  Tensor<T, R> part(pool, shape, Purpose::activations);
  for (std::int64_t o = 0; o < outer; ++o)
    std::copy_n(whole.data() + (o * ranks + rank) * inner, inner, part.data() + o * inner);
  return part;
}

template <class T>
double greatest(std::span<T> of) {
  double most = 0;
  for (T v : of) most = std::max(most, std::abs(static_cast<double>(v)));
  return most;
}
template <class T>
double error_of(std::span<T> got, std::span<T> expected, double scale) {
  double most = got.size() == expected.size() ? 0 : 1e9;
  for (std::size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    most = std::isnan(difference) ? 1e9 : std::max(most, difference);
  }
  return scale > 0 ? most / scale : most;
}

struct Errors {
  double y = 0, dx = 0, gradients = 0;
  bool copies_equal = true;  ///< replicated gradients, after their sum, have the same bits on every rank

  double worst() const { return std::max({y, dx, gradients}); }
};

struct Axes {
  int in = -1, out = -1;  ///< along which input and output are shared
};

/// Forward and backward of a whole layer and of its parts on `ranks` ranks.
template <class P, SplitBy S = SplitBy::none, class L, class MakeX>
Errors compare(const L& layer, int ranks, bool sequence, MakeX make_x, Axes axes, RunState run = {},
               std::int64_t labels_below = 0) {
  Cpu cpu;
  Placed<L, P> whole{cpu, layer, {.noise = 0.3f}};
  auto plain = whole.context();
  const auto x = make_x(plain);
  const auto with_labels = [&](Cpu& device) {
    auto own = run;
    if (labels_below) own.labels = token_tensor(device, {x.extent(0), x.extent(1)}, labels_below, 7, 5);
    return own;
  };
  auto ctx = whole.context(with_labels(cpu));
  auto forward = ctx.forward(whole.layer(), x);
  const auto y = forward.output;
  constexpr bool head = std::is_same_v<decltype(forward.output), Loss>;
  const auto dy = [&] {
    if constexpr (head)
      return 1.0f;
    else
      return normal_tensor(ctx, y.shape(), 99);
  }();
  const auto dx = ctx.backward(whole.layer(), dy, std::move(forward.saved));

  std::vector<Errors> of_rank(static_cast<std::size_t>(ranks));
  run_ranks(ranks, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    Cpu device;
    auto& errors = of_rank[static_cast<std::size_t>(comm.rank())];
    Placed<TensorParallel<L, S>, P> split{device, {{.comm = comm, .sequence_parallel = sequence}, layer}};
    for (auto* p : split.parameters()) {
      const auto from = whole.value(p->name);
      p->for_each_run([&](std::int64_t there, std::int64_t here, std::int64_t count) {
        std::copy_n(from.data() + there, count, split.value(*p).data() + here);
      });
    }
    auto own = split.context(with_labels(device));
    const auto local = [&](const auto& t, int axis) {
      return part_of(device.pool(), t, axis, comm.rank(), comm.size());
    };
    auto [out, kept] = own.forward(split.layer(), local(x, axes.in));
    auto dout = [&] {
      if constexpr (head)
        return 1.0f;
      else
        return local(dy, axes.out);
    }();
    const auto din = own.backward(split.layer(), std::move(dout), std::move(kept));
    if constexpr (head)
      errors.y = std::abs(out.sum() - y.sum()) / std::abs(y.sum()) + (out.count() == y.count() ? 0 : 1e9);
    else
      errors.y = error_of(out.span(), local(y, axes.out).span(), greatest(y.span()));
    if constexpr (!std::is_same_v<std::decay_t<decltype(din)>, None>)
      errors.dx = error_of(din.span(), local(dx, axes.in).span(), greatest(dx.span()));
    for (auto* p : split.parameters()) {
      auto g = split.gradient(*p);
      if (p->sum_over_tensor) comm.all_reduce(g);
      const auto expected = whole.gradient(p->name);
      p->for_each_run([&](std::int64_t there, std::int64_t here, std::int64_t count) {
        const auto n = static_cast<std::size_t>(count);
        errors.gradients = std::max(errors.gradients,
                                    error_of(g.subspan(static_cast<std::size_t>(here), n),
                                             expected.subspan(static_cast<std::size_t>(there), n), greatest(expected)));
      });
      if (!p->split()) {
        std::vector<typename P::Gradient> first(g.begin(), g.end());
        comm.broadcast(std::span{first}, 0);
        errors.copies_equal &= std::memcmp(first.data(), g.data(), g.size_bytes()) == 0;
      }
    }
  });
  Errors all;
  for (auto& e : of_rank) {
    all.y = std::max(all.y, e.y);
    all.dx = std::max(all.dx, e.dx);
    all.gradients = std::max(all.gradients, e.gradients);
    all.copies_equal &= e.copies_equal;
  }
  return all;
}

double worst_double = 0, worst_float = 0;

template <SplitBy S = SplitBy::none, class L, class MakeX>
void check_rule(const L& layer, MakeX make_x, Axes of_parts = {}, RunState run = {}, std::int64_t labels = 0) {
  constexpr bool tokens = !std::is_same_v<decltype(make_x(std::declval<Context<Cpu, Fp64>&>())), Tensor<double, 3>>;
  for (int ranks : {1, 2, 4})
    for (bool sequence : {false, true}) {
      CAPTURE(ranks);
      CAPTURE(sequence);
      auto axes = of_parts;
      if (sequence && axes.in < 0 && !tokens) axes.in = 1;
      if (sequence && axes.out < 0) axes.out = 1;
      const auto in_double = compare<Fp64, S>(layer, ranks, sequence, make_x, axes, run, labels);
      const auto in_float = compare<Fp32, S>(layer, ranks, sequence, make_x, axes, run, labels);
      CHECK(in_double.y <= (ranks == 1 ? 0 : 1e-12));
      CHECK(in_double.dx <= (ranks == 1 ? 0 : 1e-12));
      CHECK(in_double.gradients <= (ranks == 1 ? 0 : 1e-12));
      CHECK(in_float.y <= (ranks == 1 ? 0 : 1e-5));
      CHECK(in_float.dx <= (ranks == 1 ? 0 : 1e-5));
      CHECK(in_float.gradients <= (ranks == 1 ? 0 : 1e-5));
      CHECK(in_double.copies_equal);
      CHECK(in_float.copies_equal);
      if (ranks == 1) CHECK(compare<Bf16, S>(layer, 1, sequence, make_x, axes, run, labels).worst() == 0);
      worst_double = std::max(worst_double, in_double.worst());
      worst_float = std::max(worst_float, in_float.worst());
    }
}

const auto normal = [](auto& ctx) { return normal_tensor(ctx, Extents<3>{2, 8, 16}, 3); };
const auto tokens = [](auto& ctx) { return token_tensor(ctx.device, {2, 8}, 29, 5); };

std::string refusal(const std::function<void()>& what) {
  try {
    what();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("linear by columns and by rows, with and without bias") {
  for (bool bias : {true, false}) {
    check_rule<SplitBy::columns>(Linear{"l", 16, 12, {.bias = bias}}, normal, {.out = 2});
    check_rule<SplitBy::rows>(Linear{"l", 16, 12, {.bias = bias}}, normal, {.in = 2});
  }
}

TEST_CASE("mlp and swiglu by hidden channels") {
  check_rule(Mlp{"mlp", 16, 20}, normal);
  check_rule(Mlp{"mlp", 16, 20, {.bias = false, .recompute_gelu = true}}, normal);
  check_rule(SwiGlu{"glu", 16, 20, {.bias = true}}, normal);
  check_rule(SwiGlu{"glu", 16, 20}, normal);
}

TEST_CASE("attention by heads, grouped and rotary") {
  check_rule(CausalSelfAttention{"attn", {.width = 16, .heads = 4}}, normal);
  check_rule(CausalSelfAttention{"attn", {.width = 16, .heads = 8, .kv_heads = 4, .rope_base = 50, .bias = false}},
             normal);
}

TEST_CASE("a user's own rule, and a user's layer of single positions") {
  check_rule(Squeeze{}, normal);
  check_rule(Gain{}, normal);
}

TEST_CASE("norms, gelu and dropout") {
  check_rule(LayerNorm{"ln", 16}, normal);
  check_rule(RmsNorm{"rms", 16}, normal);
  check_rule(Gelu{}, normal);
  check_rule(Dropout{"drop", 0.4f}, normal, {}, {.step = 3, .first_sample = 5});
}

TEST_CASE("embedding by vocabulary: sums over ranks are exact") {
  for (std::int64_t positions : {0, 12}) {
    const GptEmbedding layer{{.vocabulary = 32, .sequence = positions, .width = 16, .vocabulary_used = 29}};
    check_rule(layer, tokens);
    for (int ranks : {2, 4})
      for (bool sequence : {false, true}) {
        const Axes axes{.out = sequence ? 1 : -1};
        CHECK(compare<Fp32>(layer, ranks, sequence, tokens, axes).worst() == 0);
        CHECK(compare<Bf16>(layer, ranks, sequence, tokens, axes).worst() == 0);
      }
  }
}

TEST_CASE("head by vocabulary, also where a rank holds nothing but padding, and in several blocks of rows") {
  check_rule(LmHead{"head", 40, 16, {.vocabulary_used = 29}}, normal, {}, {.loss_weight = 0.25}, 29);
  check_rule(LmHead{"head", 64, 16, {.vocabulary_used = 29}}, normal, {}, {.loss_weight = 0.25}, 29);
  const auto long_ones = [](auto& ctx) { return normal_tensor(ctx, Extents<3>{2, 100, 16}, 3); };
  check_rule(LmHead{"head", 40, 16}, long_ones, {}, {.loss_weight = 0.25}, 40);
}

TEST_CASE("a whole GPT: tied head, recompute, dropout, padding") {
  const RunState run{.step = 4, .first_sample = 2, .loss_weight = 0.1};
  check_rule(Gpt{}, tokens, {}, run, 29);
  for (bool sequence : {false, true}) {
    const auto in_bf16 = compare<Bf16>(Gpt{}, 2, sequence, tokens, {}, run, 29);
    CHECK(in_bf16.y <= 1e-2);
    CHECK(in_bf16.gradients <= 1e-1);
    CHECK(in_bf16.copies_equal);
    const auto in_fp16 = compare<Fp16>(Gpt{}, 2, sequence, tokens, {}, run, 29);
    CHECK(in_fp16.y <= 2e-3);
    CHECK(in_fp16.gradients <= 2e-2);
    CHECK(in_fp16.copies_equal);
  }
}

TEST_CASE("evaluation and logits on request are the whole model's, on every rank") {
  const std::vector<std::int64_t> rows{0, 9, 15};
  Cpu cpu;
  Placed<Gpt, Fp64> whole{cpu, Gpt{}};
  std::vector<float> expected(3 * 29);
  LogitsRequest request{rows, expected};
  auto ctx = whole.context({.mode = Mode::evaluation, .logits = &request});
  ctx.forward(whole.layer(), tokens(ctx));
  auto losing = whole.context({.mode = Mode::evaluation, .labels = token_tensor(cpu, {2, 8}, 29, 7, 5)});
  const auto loss = ctx.forward(whole.layer(), tokens(ctx)).output,
             real = losing.forward(whole.layer(), tokens(ctx)).output;
  for (int ranks : {1, 2, 4})
    for (bool sequence : {false, true}) {
      std::vector<std::vector<float>> got(static_cast<std::size_t>(ranks), std::vector<float>(3 * 29));
      std::vector<double> losses(static_cast<std::size_t>(ranks));
      run_ranks(ranks, [&](Comm comm) {
        Cpu device;
        const auto r = static_cast<std::size_t>(comm.rank());
        Placed<TensorParallel<Gpt>, Fp64> split{device, {{.comm = comm, .sequence_parallel = sequence}, Gpt{}}};
        for (auto* p : split.parameters())
          p->for_each_run([&](std::int64_t there, std::int64_t here, std::int64_t count) {
            std::copy_n(whole.value(p->name).data() + there, count, split.value(*p).data() + here);
          });
        LogitsRequest own{rows, got[r]};
        auto asking = split.context({.mode = Mode::evaluation, .logits = &own});
        asking.forward(split.layer(), tokens(asking));
        auto evaluating = split.context({.mode = Mode::evaluation, .labels = token_tensor(device, {2, 8}, 29, 7, 5)});
        losses[r] = evaluating.forward(split.layer(), tokens(evaluating)).output.sum();
      });
      for (std::size_t r = 0; r < got.size(); ++r) {
        CHECK(error_of(std::span<float>{got[r]}, std::span<float>{expected}, greatest(std::span<float>{expected})) <=
              1e-7);
        CHECK(losses[r] == losses[0]);
        CHECK(losses[r] == doctest::Approx(real.sum()).epsilon(1e-12));
      }
    }
  CHECK(loss.sum() == 0);
}

namespace {

/// Every parameter's first weights by name, as `Sharded` draws them.
template <class M>
std::map<std::string, std::vector<float>> weights_of(M& model) {
  std::map<std::string, std::vector<float>> all;
  for (auto& unit : model.units()) {
    auto lease = unit.lease();
    for (auto* p : unit.parameters()) {
      const auto from = unit.whole().subspan(static_cast<std::size_t>(p->offset), static_cast<std::size_t>(p->size()));
      all[p->name].assign(from.begin(), from.end());
    }
  }
  return all;
}

}  // namespace

TEST_CASE("under Sharded: the same units, first weights that are slices of the whole ones, the same losses") {
  Cpu cpu;
  const auto fill = [](Cpu& device, std::int64_t begin, std::int64_t end) {
    auto batch = Batch::on(device, end - begin, 8);
    const auto all = token_tensor(device, {4, 8}, 29, 5), labels = token_tensor(device, {4, 8}, 29, 7);
    std::copy_n(all.data() + begin * 8, batch.tokens.size(), batch.tokens.data());
    std::copy_n(labels.data() + begin * 8, batch.labels.size(), batch.labels.data());
    batch.first_sample = begin;
    return batch;
  };
  Sharded<Gpt, Stage::none> whole{Comm{}, cpu, Gpt{}};
  const auto expected = weights_of(whole);
  const auto loss = whole.train(fill(cpu, 0, 4)).mean();
  CHECK(expected.size() == 36);
  for (bool sequence : {false, true}) {
    std::vector<int> wrong(4), units(4);
    std::vector<double> losses(4);
    run_ranks(4, [&](Comm world) {
      const Mesh mesh{world, {.tensor = 2}};
      const auto r = static_cast<std::size_t>(world.rank());
      Cpu device;
      Sharded<TensorParallel<Gpt>, Stage::parameters> model{
          mesh, device, {{.comm = mesh.tensor(), .sequence_parallel = sequence}, Gpt{}}};
      units[r] = static_cast<int>(model.units().size());
      const auto got = weights_of(model);
      wrong[r] = got.size() != expected.size();
      for (auto& [name, p] : model.parameters_by_name())
        p->for_each_run([&, &key = name](std::int64_t there, std::int64_t here, std::int64_t count) {
          wrong[r] += std::memcmp(expected.at(key).data() + there, got.at(key).data() + here,
                                  static_cast<std::size_t>(count) * sizeof(float)) != 0;
        });
      const auto at = mesh.data().rank() * 2;
      losses[r] = model.train(fill(device, at, at + 2)).mean();
    });
    for (std::size_t r = 0; r < 4; ++r) {
      CHECK(wrong[r] == 0);
      CHECK(units[r] == static_cast<int>(whole.units().size()));
      CHECK(losses[r] == losses[0]);
      CHECK(losses[r] == doctest::Approx(loss).epsilon(1e-6));
    }
  }
}

namespace {

/// Losses, norms and a few weights of a short training on a mesh of 2 data ranks and `tensor` ranks.
std::vector<double> short_training(Stage stage, int tensor, bool sequence) {
  std::vector<double> of_first;
  run_ranks(2 * tensor, [&](Comm world) {
    const Mesh mesh{world, {.tensor = tensor}};
    Cpu device;
    TensorParallel net{TensorOptions{.comm = mesh.tensor(), .sequence_parallel = sequence}, Gpt{}};
    ShardedEngine<TensorParallel<Gpt>> model{mesh, device, std::move(net), stage};
    FusedAdam adam{model, {}};
    auto batch = Batch::on(device, 2, 8);
    batch.first_sample = 2 * mesh.data().rank();
    std::vector<double> numbers;
    for (int step = 0; step < 4; ++step) {
      const auto seed = static_cast<std::uint64_t>(10 * step + mesh.data().rank());
      const auto drawn = token_tensor(device, {2, 8}, 29, seed), labels = token_tensor(device, {2, 8}, 29, seed + 5);
      std::copy_n(drawn.data(), 16, batch.tokens.data());
      std::copy_n(labels.data(), 16, batch.labels.data());
      numbers.push_back(model.train(batch, {.micro_batches = 2}).mean());
      const auto clip = clip_by_global_norm(model, 0.5f);
      numbers.push_back(clip.norm());
      adam.step(1e-2f, clip);
    }
    numbers.push_back(model.evaluate(batch).mean());
    if (world.rank() == 0) of_first = numbers;
  });
  return of_first;
}

}  // namespace

TEST_CASE("training: losses and norms of the unsplit model at every stage; the same bits at each of them") {
  const auto whole = short_training(Stage::none, 1, false);
  CHECK(whole.size() == 9);
  for (int ranks : {2, 4})
    for (bool sequence : {false, true}) {
      CAPTURE(ranks);
      CAPTURE(sequence);
      const auto split = short_training(Stage::none, ranks, sequence);
      for (std::size_t i = 0; i < whole.size(); ++i) CHECK(split[i] == doctest::Approx(whole[i]).epsilon(1e-4));
      CHECK(short_training(Stage::optimizer_states, ranks, sequence) == split);
      CHECK(short_training(Stage::gradients, ranks, sequence) == split);
      CHECK(short_training(Stage::parameters, ranks, sequence) == split);
    }
}

namespace {

struct Count {
  std::int64_t calls = 0, bytes = 0;
  friend bool operator==(const Count&, const Count&) = default;
};
struct Counts {
  Count reduce, scatter, gather;  // all_reduce, reduce_scatter, all_gather

  static Counts now(const Comm& comm) {
    const auto of = [&](Collective kind) {
      return Count{comm.traffic().calls_of(kind), comm.traffic().bytes_of(kind)};
    };
    return {of(Collective::all_reduce), of(Collective::reduce_scatter), of(Collective::all_gather)};
  }
  Counts since(const Counts& before) const {
    const auto less = [](Count a, Count b) { return Count{a.calls - b.calls, a.bytes - b.bytes}; };
    return {less(reduce, before.reduce), less(scatter, before.scatter), less(gather, before.gather)};
  }
  friend bool operator==(const Counts&, const Counts&) = default;
};

/// `unit` is what one reduce_scatter or all_gather of an activation [2, 8, 16] sends; an all_reduce sends twice that.
struct Expected {
  int reduce = 0, scatter = 0, gather = 0;
  Counts counts(std::int64_t unit) const {
    return {{reduce, reduce * 2 * unit}, {scatter, scatter * unit}, {gather, gather * unit}};
  }
};

template <class L, class MakeX>
void check_traffic(const L& layer, bool sequence, MakeX make_x, Expected forward, Expected backward,
                   std::int64_t numbers = 0) {
  for (int ranks : {2, 4}) {
    std::vector<Counts> first(static_cast<std::size_t>(ranks)), second = first;
    run_ranks(ranks, [&](Comm comm) {
      Cpu device;
      const auto r = static_cast<std::size_t>(comm.rank());
      Placed<TensorParallel<L>> model{device, {{.comm = comm, .sequence_parallel = sequence}, layer}};
      auto ctx = model.context({.labels = token_tensor(device, {2, 8}, 29, 7)});
      auto x = make_x(ctx);
      if constexpr (std::is_same_v<decltype(x), Tensor<float, 3>>)
        if (sequence) x = part_of(device.pool(), x, 1, comm.rank(), ranks);
      const auto before = Counts::now(comm);
      auto [y, saved] = ctx.forward(model.layer(), x);
      const auto between = Counts::now(comm);
      if constexpr (std::is_same_v<decltype(y), Loss>)
        ctx.backward(model.layer(), 1.0f, std::move(saved));
      else
        ctx.backward(model.layer(), normal_tensor(ctx, y.shape(), 9), std::move(saved));
      first[r] = between.since(before);
      second[r] = Counts::now(comm).since(between);
    });
    const std::int64_t unit = 2 * 8 * 16 * 4 * (ranks - 1) / ranks;
    auto of_backward = backward.counts(unit);
    if (numbers) {
      of_backward.gather.calls += 1;
      of_backward.gather.bytes += numbers * 4 * (ranks - 1);
    }
    for (int r = 0; r < ranks; ++r) {
      CHECK(first[static_cast<std::size_t>(r)] == forward.counts(unit));
      CHECK(second[static_cast<std::size_t>(r)] == of_backward);
    }
  }
}

}  // namespace

// B·T·C elements each: Megatron-LM exchanges two all_reduces a direction in a block of attention and Mlp. A shared
// sequence makes each of them a reduce_scatter and an all_gather, and each split input is gathered once more in
// backward (Korthikanti et al., section 4.2.2).
TEST_CASE("what layers exchange is what the papers count") {
  const CausalSelfAttention attention{"attn", {.width = 16, .heads = 4}};
  const Mlp mlp{"mlp", 16, 32};
  const SwiGlu glu{"glu", 16, 24};
  const auto check = [](const auto& layer) {
    check_traffic(layer, false, normal, {.reduce = 1}, {.reduce = 1});
    check_traffic(layer, true, normal, {.scatter = 1, .gather = 1}, {.scatter = 1, .gather = 2});
  };
  check(attention);
  check(mlp);
  check(glu);
  using Pair = Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<LayerNorm, Mlp, Dropout>>;
  const Pair block{{LayerNorm{"a", 16}, attention, Dropout{"b", 0.1f}}, {LayerNorm{"c", 16}, mlp, Dropout{"d", 0.1f}}};
  check_traffic(block, false, normal, {.reduce = 2}, {.reduce = 2});
  check_traffic(block, true, normal, {.scatter = 2, .gather = 2}, {.scatter = 2, .gather = 4});
  // recomputing runs the forward once more
  check_traffic(Recompute<Pair>{block}, false, normal, {.reduce = 2}, {.reduce = 4});

  check_traffic(LayerNorm{"ln", 16}, true, normal, {}, {});
  check_traffic(Dropout{"drop", 0.1f}, true, normal, {}, {});
  const GptEmbedding embedding{{.vocabulary = 32, .sequence = 12, .width = 16}};
  check_traffic(embedding, false, tokens, {.reduce = 1}, {});
  check_traffic(embedding, true, tokens, {.scatter = 1}, {.gather = 1});
  // three numbers of each of 16 rows, and the gradient of the input; never the logits
  check_traffic(LmHead{"head", 32, 16}, false, normal, {}, {.reduce = 1}, 3 * 16);
  check_traffic(LmHead{"head", 32, 16}, true, normal, {}, {.scatter = 1, .gather = 1}, 3 * 16);
}

TEST_CASE("with a shared sequence a rank keeps its share of every activation for backward, and not a byte more") {
  const auto kept = [](Comm comm, bool sequence) {
    Cpu device;
    using Pair = Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<RmsNorm, SwiGlu>,
                            Residual<LayerNorm, Mlp, Dropout>>;
    const Pair block{{LayerNorm{"a", 16}, CausalSelfAttention{"attn", {.width = 16, .heads = 4}}, Dropout{"b", 0.1f}},
                     {RmsNorm{"c", 16}, SwiGlu{"glu", 16, 32}},
                     {LayerNorm{"d", 16}, Mlp{"mlp", 16, 32}, Dropout{"e", 0.1f}}};
    Placed<TensorParallel<Pair>> model{device, {{.comm = comm, .sequence_parallel = sequence}, block}};
    auto ctx = model.context();
    const auto before = device.pool().allocated();
    auto saved =
        ctx.forward(model.layer(), normal_tensor(ctx, Extents<3>{4, sequence ? 64 / comm.size() : 64, 16}, 3)).saved;
    return device.pool().allocated() - before;
  };
  const auto whole = kept(Comm{}, false);
  for (int ranks : {2, 4})
    run_ranks(ranks, [&](Comm comm) {
      const auto part = kept(comm, true), more = kept(comm, false);
      if (part * static_cast<std::size_t>(ranks) != whole)
        throw Error(text("of ", whole, " bytes on one rank, ", part, " are kept on each of ", ranks));
      if (more <= part) throw Error(text(more, " bytes without a shared sequence, ", part, " with it"));
    });
}

TEST_CASE("what does not divide is refused in a sentence, before ranks exchange anything") {
  const auto on = [](int ranks, auto layer) {
    return refusal([&] { TensorParallel model{TensorOptions{.comm = dry_comm(1, ranks)}, layer}; });
  };
  CHECK(on(4, CausalSelfAttention{"attn", {.width = 12, .heads = 3}}) ==
        "attn.c_attn.weight: 3 heads are not divisible by 4 tensor ranks");
  CHECK(on(4, CausalSelfAttention{"attn", {.width = 16, .heads = 8, .kv_heads = 2}}) ==
        "attn.c_attn.weight: 2 key and value heads are not divisible by 4 tensor ranks");
  CHECK(on(4, Mlp{"mlp", 16, 30}) == "mlp.c_fc.weight: an output width of 30 is not divisible by 4 tensor ranks");
  CHECK(on(3, SwiGlu{"glu", 16, 20}) ==
        "glu.gate_proj.weight: an output width of 20 is not divisible by 3 tensor ranks");
  CHECK(on(3, GptEmbedding{{.vocabulary = 61, .width = 16}}) ==
        "wte.weight: a vocabulary of 61 is not divisible by 3 tensor ranks");
  CHECK(on(2, LmHead{"head", 61, 16}) == "head.weight: a vocabulary of 61 is not divisible by 2 tensor ranks");
  CHECK(refusal([] {
          TensorParallel<Linear, SplitBy::rows> model{{.comm = dry_comm(0, 2)}, Linear{"l", 5, 4}};
        }) == "l.weight: an input width of 5 is not divisible by 2 tensor ranks");
}

TEST_CASE("a sequence that ranks cannot share is refused in a sentence") {
  const auto sentence = refusal([] {
    run_ranks(2, [](Comm comm) {
      Cpu device;
      Placed<TensorParallel<Gpt>> model{device, {{.comm = comm, .sequence_parallel = true}, Gpt{}}};
      auto ctx = model.context();
      ctx.forward(model.layer(), token_tensor(device, {2, 7}, 29, 5));
    });
  });
  CHECK(sentence.find("sequences of 7 tokens are not divisible by 2 tensor ranks") != std::string::npos);
}

TEST_CASE("on the dry device a model of ranks that do not exist is counted, and holds its part") {
  Dry dry;
  Placed<TensorParallel<Gpt>, Fp32, Dry> model{dry, {{.comm = dry_comm(1, 4), .sequence_parallel = true}, Gpt{}}};
  auto ctx = model.context({.labels = token_tensor(dry, {2, 8}, 29, 7)});
  auto [y, saved] = ctx.forward(model.layer(), token_tensor(dry, {2, 8}, 29, 5));
  ctx.backward(model.layer(), 1.0f, std::move(saved));
  CHECK(model.parameter("wte.weight").shape == std::vector<std::int64_t>{10, 16});
  CHECK(model.parameter("h.0.attn.c_attn.weight").shape == std::vector<std::int64_t>{12, 16});
  CHECK(model.parameter("h.0.attn.c_proj.weight").shape == std::vector<std::int64_t>{16, 4});
  CHECK(model.parameter("h.0.attn.c_proj.bias").sum_over_tensor);
  CHECK(!model.parameter("h.0.attn.c_attn.bias").sum_over_tensor);
  CHECK(model.parameter("ln_f.weight").sum_over_tensor);
}

TEST_CASE("the worst of them") {
  MESSAGE("largest errors over all rules: " << worst_double << " in double, " << worst_float << " in float");
  CHECK(worst_double > 0);
}
