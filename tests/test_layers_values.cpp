// SPDX-License-Identifier: Apache-2.0
// The results of layers, against plain loops in double written down here; and the same bits where they must be equal:
// recomputed, on any number of threads, for any part of a batch.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/rms_norm.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/layers/swiglu.hpp>

#include "support/placed.hpp"

using namespace test;

namespace {

using Rows = std::vector<std::vector<double>>;  // [n][width]

template <class T, int R>
Rows rows_of(const Tensor<T, R>& t) {
  Rows rows;
  for (std::int64_t i = 0; i < t.rows(); ++i)
    rows.emplace_back(t.data() + i * t.extent(-1), t.data() + (i + 1) * t.extent(-1));
  return rows;
}
template <class M>
Rows linear(M& model, const std::string& name, const Rows& x) {
  const auto& shape = model.parameter(name + ".weight").shape;
  auto w = model.value(name + ".weight"), b = model.value(name + ".bias");
  const auto out = static_cast<std::size_t>(shape[0]), in = static_cast<std::size_t>(shape[1]);
  Rows y(x.size(), std::vector<double>(out));
  for (std::size_t r = 0; r < x.size(); ++r)
    for (std::size_t o = 0; o < out; ++o) {
      y[r][o] = b[o];
      for (std::size_t k = 0; k < in; ++k) y[r][o] += x[r][k] * w[o * in + k];
    }
  return y;
}
template <class T, int R>
void check_rows(const Tensor<T, R>& t, const Rows& expected) {
  const auto rows = rows_of(t);
  REQUIRE(rows.size() == expected.size());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    REQUIRE(rows[r].size() == expected[r].size());
    for (std::size_t i = 0; i < rows[r].size(); ++i)
      REQUIRE(rows[r][i] == doctest::Approx(expected[r][i]).epsilon(1e-10).scale(1e-3));
  }
}
double silu(double x) { return x / (1 + std::exp(-x)); }

/// Gradients, dx and output of one training step as bytes.
template <class P, class L>
std::string step_bytes(L layer, CpuOptions options = {}) {
  Cpu cpu(options);
  Placed<L, P> model{cpu, std::move(layer), {.noise = 0.1f}};
  auto ctx = model.context({.step = 7, .first_sample = 3});
  auto [y, saved] = ctx.forward(model.layer(), normal_tensor(ctx, Extents<3>{3, 40, 32}, 5));
  const auto out = bytes_of(y);
  const auto dx = ctx.backward(model.layer(), normal_tensor(ctx, y.shape(), 6), std::move(saved));
  return out + bytes_of(dx) + model.gradient_bytes();
}

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<RmsNorm, SwiGlu>,
                          Residual<LayerNorm, Mlp, Dropout>> {
  explicit Block(const std::string& h)
      : Sequential{{LayerNorm{h + "ln_1", 32},
                    CausalSelfAttention{h + "attn", {.width = 32, .heads = 4, .kv_heads = 2, .rope_base = 10000}},
                    Dropout{h + "drop_1", 0.2f}},
                   {RmsNorm{h + "ln_2", 32}, SwiGlu{h + "gated", 32, 48}},
                   {LayerNorm{h + "ln_3", 32}, Mlp{h + "mlp", 32, 128}, Dropout{h + "drop_2", 0.2f}}} {}
};
struct Gpt : Sequential<GptEmbedding, Repeat<Block>, LayerNorm, LmHead> {
  Gpt()
      : Sequential{GptEmbedding{{.vocabulary = 50, .sequence = 16, .width = 32}},
                   {{Block{"h.0."}, Block{"h.1."}}},
                   LayerNorm{"ln_f", 32},
                   LmHead{"lm_head", 50, 32, {.tied_to = "wte.weight"}}} {}
};

}  // namespace

TEST_CASE("linear, norms, gelu and swiglu against plain loops") {
  Cpu cpu;
  Placed<Linear, Fp64> dense{cpu, {"l", 6, 9}, {.noise = 0.4f}};
  auto ctx = dense.context();
  const auto x = normal_tensor(ctx, Extents<3>{2, 7, 6}, 1);
  check_rows(ctx.forward(dense.layer(), x).output, linear(dense, "l", rows_of(x)));

  Placed<LayerNorm, Fp64> norm{cpu, {"ln", 6}, {.noise = 0.4f}};
  Placed<RmsNorm, Fp64> rms{cpu, {"rms", 6}, {.noise = 0.4f}};
  auto normed = rows_of(x), scaled = normed;
  for (std::size_t r = 0; r < normed.size(); ++r) {
    double mean = 0, variance = 0, square = 0;
    for (double v : normed[r]) mean += v / 6, square += v * v / 6;
    for (double v : normed[r]) variance += (v - mean) * (v - mean) / 6;
    for (std::size_t i = 0; i < 6; ++i) {
      normed[r][i] =
          (normed[r][i] - mean) / std::sqrt(variance + static_cast<double>(1e-5f)) * norm.value("ln.weight")[i] +
          norm.value("ln.bias")[i];
      scaled[r][i] *= rms.value("rms.weight")[i] / std::sqrt(square + static_cast<double>(1e-5f));
    }
  }
  check_rows(ctx.forward(norm.layer(), x).output, normed);
  check_rows(ctx.forward(rms.layer(), x).output, scaled);

  Gelu gelu;
  auto one = ctx.make<1>({3});
  one.data()[0] = 1, one.data()[1] = -0.5, one.data()[2] = 0;
  const auto y = ctx.forward(gelu, one).output;
  CHECK(y.data()[0] == doctest::Approx(0.8411919906082768).epsilon(1e-12));  // by PyTorch, approximate="tanh"
  CHECK(y.data()[1] == doctest::Approx(-0.15428599017485606).epsilon(1e-12));
  CHECK(y.data()[2] == 0);

  Placed<SwiGlu, Fp64> gated{cpu, {"mlp", 6, 5, {.bias = true}}, {.noise = 0.4f}};
  auto g = linear(gated, "mlp.gate_proj", rows_of(x));
  const auto u = linear(gated, "mlp.up_proj", rows_of(x));
  for (std::size_t r = 0; r < g.size(); ++r)
    for (std::size_t i = 0; i < g[r].size(); ++i) g[r][i] = silu(g[r][i]) * u[r][i];
  check_rows(ctx.forward(gated.layer(), x).output, linear(gated, "mlp.down_proj", g));
}

TEST_CASE("attention against the whole matrix of scores: grouped queries, rotary positions, more than a tile") {
  constexpr std::int64_t batch = 2, heads = 4, size = 6, width = heads * size;
  for (std::int64_t kv_heads : {1, 2, 4})
    for (std::int64_t sequence : {1, 5, 131})
      for (double base : {0.0, 10000.0}) {
        CAPTURE(kv_heads);
        CAPTURE(sequence);
        CAPTURE(base);
        Cpu cpu;
        Placed<CausalSelfAttention, Fp64> model{
            cpu, {"a", {.width = width, .heads = heads, .kv_heads = kv_heads, .rope_base = base}}, {.noise = 0.3f}};
        auto ctx = model.context();
        const auto x = normal_tensor(ctx, Extents<3>{batch, sequence, width}, 1);
        auto packed = linear(model, "a.c_attn", rows_of(x));
        Rows mixed(packed.size(), std::vector<double>(width));
        auto turned = [&](std::int64_t row, std::int64_t at,
                          std::int64_t i) {  // element i of the head that begins at `at`
          const auto& p = packed[static_cast<std::size_t>(row)];
          const auto value = [&](std::int64_t k) { return p[static_cast<std::size_t>(at + k)]; };
          if (base == 0) return value(i);
          const auto pair = i % (size / 2);
          const double angle =
              static_cast<double>(row % sequence) * std::pow(base, -2.0 * static_cast<double>(pair) / size);
          return i < size / 2 ? value(pair) * std::cos(angle) - value(pair + size / 2) * std::sin(angle)
                              : value(pair + size / 2) * std::cos(angle) + value(pair) * std::sin(angle);
        };
        for (std::int64_t b = 0; b < batch; ++b)
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t t = 0; t < sequence; ++t) {
              const auto kv = h / (heads / kv_heads);
              std::vector<double> p;
              double sum = 0;
              for (std::int64_t s = 0; s <= t; ++s) {
                double score = 0;
                for (std::int64_t i = 0; i < size; ++i)
                  score += turned(b * sequence + t, h * size, i) * turned(b * sequence + s, width + kv * size, i);
                p.push_back(std::exp(score / std::sqrt(static_cast<double>(size))));
                sum += p.back();
              }
              for (std::int64_t i = 0; i < size; ++i)
                for (std::int64_t s = 0; s <= t; ++s)
                  mixed[static_cast<std::size_t>(b * sequence + t)][static_cast<std::size_t>(h * size + i)] +=
                      p[static_cast<std::size_t>(s)] / sum *
                      packed[static_cast<std::size_t>(b * sequence + s)]
                            [static_cast<std::size_t>(width + (kv_heads + kv) * size + i)];
            }
        check_rows(ctx.forward(model.layer(), x).output, linear(model, "a.c_proj", mixed));
      }
}

TEST_CASE("embedding and head: values, padded vocabulary, labels that do not count, logits on request") {
  Cpu cpu;
  constexpr std::int64_t used = 10, padded = 16, width = 6;
  using Model = Sequential<GptEmbedding, LmHead>;
  Placed<Model, Fp64> model{
      cpu,
      {GptEmbedding{{.vocabulary = padded, .sequence = 5, .width = width, .vocabulary_used = used}},
       LmHead{"head", padded, width, {.tied_to = "wte.weight", .vocabulary_used = used}}},
      {.noise = 0.5f}};
  auto ctx = model.context({.loss_weight = 0.5});
  const auto tokens = token_tensor(cpu, {3, 4}, used, 1);
  ctx.labels = token_tensor(cpu, {3, 4}, used, 2, 5);

  const auto w = model.value("wte.weight"), p = model.value("wpe.weight");
  double expected = 0;
  std::int64_t count = 0;
  Rows logits;
  for (std::int64_t i = 0; i < tokens.size(); ++i) {
    std::vector<double> row(used);
    for (std::size_t v = 0; v < used; ++v)
      for (std::size_t c = 0; c < width; ++c)
        row[v] += (w[static_cast<std::size_t>(tokens.data()[i]) * width + c] +
                   p[static_cast<std::size_t>(i % 4) * width + c]) *
                  w[v * width + c];
    logits.push_back(row);
    const auto label = ctx.labels.data()[i];
    if (label < 0) continue;
    double sum = 0;
    for (double l : row) sum += std::exp(l);
    expected += std::log(sum) - row[static_cast<std::size_t>(label)];
    ++count;
  }
  REQUIRE(count == 10);

  auto [loss, saved] = ctx.forward(model.layer(), tokens);
  CHECK(!loss.known());
  CHECK_THROWS_WITH_AS(loss.mean(), doctest::Contains("known after its backward"), Error);
  ctx.backward(model.layer(), 1.0f, std::move(saved));
  CHECK(loss.sum() == doctest::Approx(expected).epsilon(1e-12));
  CHECK(loss.count() == count);
  for (std::size_t i = used * width; i < padded * width; ++i) REQUIRE(model.gradient("wte.weight")[i] == 0);

  ctx.mode = Mode::evaluation;
  const auto evaluated = ctx.forward(model.layer(), tokens).output;
  CHECK(evaluated.sum() == loss.sum());
  CHECK(evaluated.count() == count);

  const std::vector<std::int64_t> rows{11, 0, 7};
  std::vector<float> out(rows.size() * used);
  LogitsRequest request{rows, out};
  ctx.logits = &request;
  ctx.labels = {};
  ctx.forward(model.layer(), tokens);
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::size_t v = 0; v < used; ++v)
      REQUIRE(out[i * used + v] ==
              doctest::Approx(logits[static_cast<std::size_t>(rows[i])][v]).epsilon(1e-6).scale(1e-3));
}

TEST_CASE_TEMPLATE("gradients that count as zero get the bits of zeros, whatever lies there; a second use adds", P,
                   Fp32, Bf16Gradients) {
  const auto bytes = [](bool unset, int uses) {
    Cpu cpu;
    Placed<Sequential<GptEmbedding, Block, Linear, LmHead>, P> model{
        cpu,
        {GptEmbedding{{.vocabulary = 50, .sequence = 40, .width = 32}}, Block{"h."}, Linear{"l", 32, 32},
         LmHead{"head", 50, 32}},
        {.noise = 0.1f}};
    for (auto* p : model.parameters())
      if (unset) {
        p->gradient_unset = true;
        for (auto& g : model.gradient(*p)) g = static_cast<typename P::Gradient>(std::nanf(""));
      }
    auto ctx = model.context({.labels = token_tensor(cpu, {3, 40}, 50, 2)});
    for (int use = 0; use < uses; ++use) {
      auto [loss, saved] = ctx.forward(model.layer(), token_tensor(cpu, {3, 40}, 50, 1));
      ctx.backward(model.layer(), 1.0f, std::move(saved));
    }
    return model.gradient_bytes();
  };
  for (int uses : {1, 2}) CHECK(bytes(true, uses) == bytes(false, uses));
  CHECK(bytes(true, 1) != bytes(true, 2));
}

TEST_CASE("recompute: the same bits of output, dx and gradients, dropout included") {
  const auto plain = step_bytes<Fp32>(Block{"h."});
  CHECK(step_bytes<Fp32>(Recompute<Block>{Block{"h."}}) == plain);
  CHECK(step_bytes<Fp32>(Sequential<Recompute<Sequential<Block>>>{{Sequential<Block>{Block{"h."}}}}) == plain);
  CHECK(step_bytes<Fp32>(Recompute<Block>{Block{"h."}, false}) == plain);
  CHECK(step_bytes<Bf16>(Recompute<Block>{Block{"h."}}) == step_bytes<Bf16>(Block{"h."}));
  CHECK(step_bytes<Fp32>(Block{"g."}) != plain);
}

TEST_CASE("the same bits on any number of threads") {
  const auto one = step_bytes<Fp32>(Block{"h."});
  CHECK(step_bytes<Fp32>(Block{"h."}, {.threads = 2}) == one);
  CHECK(step_bytes<Fp32>(Block{"h."}, {.threads = 3}) == one);
}

TEST_CASE("dropout does not depend on how a batch is cut, and drops what it is told to") {
  Cpu cpu;
  Dropout drop{"d", 0.25f};
  Context<Cpu, Fp32> ctx{cpu, {.step = 1, .first_sample = 10}};
  auto x = ctx.make<3>({6, 50, 70});
  std::fill_n(x.data(), x.size(), 1.0f);
  const auto whole = ctx.forward(drop, x).output;
  for (std::int64_t begin = 0; begin < 6; begin += 2) {
    Context<Cpu, Fp32> part{cpu, {.step = 1, .first_sample = 10 + begin}};
    CHECK(bytes_of(part.forward(drop, x.slice(begin, begin + 2)).output) == bytes_of(whole.slice(begin, begin + 2)));
  }
  std::int64_t kept = 0;
  for (float v : whole.span()) {
    REQUIRE((v == 0 || v == 1 / 0.75f));
    kept += v != 0;
  }
  CHECK(static_cast<double>(kept) / static_cast<double>(x.size()) == doctest::Approx(0.75).epsilon(0.02));
  Context<Cpu, Fp32> next{cpu, {.step = 2, .first_sample = 10}}, eval{cpu, {.mode = Mode::evaluation}};
  CHECK(bytes_of(next.forward(drop, x).output) != bytes_of(whole));
  CHECK(eval.forward(drop, x).output.data() == x.data());
  Dropout other{"e", 0.25f};
  CHECK(bytes_of(ctx.forward(other, x).output) != bytes_of(whole));
}

TEST_CASE("bf16 and fp16 are near fp32 that begins with the same weights") {
  auto run = [](auto precision) {
    using P = decltype(precision);
    Cpu cpu;
    Placed<Gpt, P> model{cpu, Gpt{}, {.noise = 0.05f, .rounded = true}};
    const auto tokens = token_tensor(cpu, {4, 16}, 50, 1);
    auto ctx = model.context({.loss_weight = 1.0 / 64, .labels = token_tensor(cpu, {4, 16}, 50, 2)});
    auto [loss, saved] = ctx.forward(model.layer(), tokens);
    ctx.backward(model.layer(), 1.0f, std::move(saved));
    std::vector<double> gradients;
    for (auto* p : model.parameters()) {
      const auto g = model.gradient(*p);
      for (auto v : g) gradients.push_back(static_cast<double>(v));
    }
    return std::pair{loss.mean(), gradients};
  };
  const auto base = run(Fp32{});
  const auto exact = base.first;
  const auto& g = base.second;
  auto distance = [&](const std::vector<double>& other) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < g.size(); ++i) difference += (g[i] - other[i]) * (g[i] - other[i]), norm += g[i] * g[i];
    return std::sqrt(difference / norm);
  };
  const auto [loss, wide] = run(Bf16{});
  const auto [same_loss, narrow] = run(Bf16Gradients{});
  MESSAGE("loss " << exact << " fp32, " << loss << " bf16; gradients " << distance(wide) << " apart, "
                  << distance(narrow) << " where they are kept in bf16");
  CHECK(loss == doctest::Approx(exact).epsilon(1e-3));
  CHECK(loss != exact);
  CHECK(same_loss == loss);
  CHECK(distance(wide) < 0.02);
  CHECK(distance(narrow) < 0.02);
  const auto [half_loss, half] = run(Fp16{});
  MESSAGE("fp16: loss " << half_loss << ", gradients " << distance(half) << " apart");
  CHECK(half_loss == doctest::Approx(exact).epsilon(1e-4));
  CHECK(half_loss != exact);
  CHECK(distance(half) < 0.005);
  CHECK(run(Fp64{}).first == doctest::Approx(exact).epsilon(1e-6));
}

TEST_CASE("a batch without rows runs through every layer, and a sequence of one token") {
  for (auto shape : {Extents<2>{0, 16}, Extents<2>{3, 0}, Extents<2>{1, 1}}) {
    Cpu cpu;
    Placed<Gpt> model{cpu, Gpt{}};
    const auto tokens = token_tensor(cpu, shape, 50, 1);
    auto ctx = model.context({.labels = token_tensor(cpu, shape, 50, 2)});
    auto [loss, saved] = ctx.forward(model.layer(), tokens);
    ctx.backward(model.layer(), 1.0f, std::move(saved));
    CHECK(loss.count() == shape[0] * shape[1]);
    double sum = 0;
    for (auto* p : model.parameters())
      for (float v : model.gradient(*p)) sum += std::abs(v);
    CHECK((sum > 0) == (loss.count() > 0));
    ctx.mode = Mode::evaluation;
    CHECK(ctx.forward(model.layer(), tokens).output.count() == loss.count());
  }
}

TEST_CASE("parameters have GPT-2's names, in the order of the forward; matrices decay") {
  Gpt gpt;
  std::string names, decaying;
  visit_parameters(gpt, [&](Parameter& p) {
    if (p.name.starts_with("h.1.")) return;
    names += p.name + " ";
    if (p.decay) decaying += p.name + " ";
  });
  CHECK(names ==
        "wte.weight wpe.weight h.0.ln_1.weight h.0.ln_1.bias h.0.attn.c_attn.weight h.0.attn.c_attn.bias "
        "h.0.attn.c_proj.weight h.0.attn.c_proj.bias h.0.ln_2.weight h.0.gated.gate_proj.weight "
        "h.0.gated.up_proj.weight h.0.gated.down_proj.weight h.0.ln_3.weight h.0.ln_3.bias h.0.mlp.c_fc.weight "
        "h.0.mlp.c_fc.bias h.0.mlp.c_proj.weight h.0.mlp.c_proj.bias ln_f.weight ln_f.bias lm_head.weight ");
  CHECK(decaying ==
        "wte.weight wpe.weight h.0.attn.c_attn.weight h.0.attn.c_proj.weight h.0.gated.gate_proj.weight "
        "h.0.gated.up_proj.weight h.0.gated.down_proj.weight h.0.mlp.c_fc.weight h.0.mlp.c_proj.weight "
        "lm_head.weight ");
}

TEST_CASE("sizes that cannot be are refused where the layer is built") {
  auto refused = [](auto build, const char* sentence) {
    CHECK_THROWS_WITH_AS(build(), doctest::Contains(sentence), ConfigError);
  };
  constexpr auto huge = std::numeric_limits<std::int64_t>::max() / 2;
  refused([] { Linear{"h.0.fc", 0, 4}; }, "h.0.fc: the input width must be at least 1, got 0");
  refused([] { Linear{"h.0.fc", 4, -3}; }, "h.0.fc: the output width must be at least 1, got -3");
  refused([] { Linear{"h.0.fc", huge, 8}; }, "does not fit in 63 bits");
  refused([] { LayerNorm{"ln", 0}; }, "ln: the width must be at least 1, got 0");
  refused([] { RmsNorm{"rms", -1}; }, "rms: the width must be at least 1, got -1");
  refused([] { Mlp{"mlp", 4, 0}; }, "mlp.c_fc: the output width must be at least 1, got 0");
  refused([] { SwiGlu{"mlp", 0, 4}; }, "mlp.gate_proj: the input width must be at least 1, got 0");
  auto attention = [](AttentionOptions o) { return [o] { CausalSelfAttention("attn", o); }; };
  refused(attention({.width = 0}), "attn: the width must be at least 1, got 0");
  refused(attention({.width = 8, .heads = 0}), "attn: the number of heads must be at least 1, got 0");
  refused(attention({.width = 8, .heads = 3}), "attn: a width of 8 is not divisible by 3 heads");
  refused(attention({.width = 8, .heads = 4, .kv_heads = 3}),
          "attn: 4 heads are not divisible by 3 key and value heads");
  refused(attention({.width = 8, .heads = 4, .kv_heads = -1}), "key and value heads must be at least 1, got -1");
  refused(attention({.width = 9, .heads = 3, .rope_base = 10000}),
          "attn: rotary positions need an even head size, got 3");
  refused(attention({.width = 8, .rope_base = -1}), "the base of rotary positions must be above 0, got -1");
  refused(attention({.width = huge}), "does not fit in 63 bits");
  for (float p : {-0.1f, 1.0f, std::numeric_limits<float>::quiet_NaN()})
    refused([p] { Dropout("drop", p); }, "drop: the probability of dropout must be in [0, 1), got ");
  refused([] { GptEmbedding{{.vocabulary = 0, .width = 4}}; }, "wte: the vocabulary must be at least 1, got 0");
  refused([] { GptEmbedding{{.vocabulary = 4, .width = 0}}; }, "wte: the width must be at least 1, got 0");
  refused([] { GptEmbedding{{.vocabulary = 4, .sequence = -1, .width = 4}}; },
          "the sequence must not be negative, got -1");
  refused([] { GptEmbedding{{.vocabulary = 4, .width = 4, .vocabulary_used = 5}}; },
          "wte: 5 tokens do not fit a table of 4 rows");
  refused([] { LmHead{"head", 4, 4, {.vocabulary_used = 5}}; }, "head: 5 tokens do not fit a table of 4 rows");
  refused([] { LmHead{"head", 0, 4}; }, "head: the vocabulary must be at least 1, got 0");
}

TEST_CASE("inputs that do not fit are refused with what was expected and what came") {
  Cpu cpu;
  auto refused = [&](auto layer, Extents<3> shape, const char* sentence) {
    Placed<decltype(layer)> model{cpu, std::move(layer)};
    auto ctx = model.context();
    CHECK_THROWS_WITH_AS(ctx.forward(model.layer(), ctx.template make<3>(shape)), doctest::Contains(sentence),
                         ConfigError);
  };
  refused(Linear{"fc", 8, 4}, {2, 3, 7}, "fc.weight takes rows of 8 elements, got a tensor of shape [2, 3, 7]");
  refused(LayerNorm{"ln", 8}, {2, 3, 7}, "ln.weight takes rows of 8 elements");
  refused(RmsNorm{"rms", 8}, {2, 3, 7}, "rms.weight takes rows of 8 elements");
  refused(Mlp{"mlp", 8, 9}, {2, 3, 7}, "mlp.c_fc.weight takes rows of 8 elements");
  refused(SwiGlu{"mlp", 8, 9}, {2, 3, 7}, "mlp.gate_proj.weight takes rows of 8 elements");
  refused(CausalSelfAttention{"attn", {.width = 8}}, {2, 3, 7}, "attn.c_attn.weight takes rows of 8 elements");
  refused(Residual<Linear>{Linear{"fc", 8, 4}}, {2, 3, 8},
          "the output of the layers inside has shape [2, 3, 4], their input [2, 3, 8]");
  refused(LmHead{"head", 9, 8}, {2, 3, 7}, "head.weight takes rows of 8 elements");
  refused(LmHead{"head", 9, 8}, {2, 3, 8}, "an input of 6 rows needs as many labels, got 0");

  using Model = Sequential<GptEmbedding, LmHead>;
  Placed<Model> model{cpu, {GptEmbedding{{.vocabulary = 9, .sequence = 4, .width = 8}}, LmHead{"head", 9, 8}}};
  auto ctx = model.context();
  auto tokens = token_tensor(cpu, {2, 4}, 9, 1);
  ctx.labels = token_tensor(cpu, {2, 4}, 9, 1);
  CHECK_THROWS_WITH_AS(ctx.forward(model.layer(), token_tensor(cpu, {2, 5}, 9, 1)),
                       doctest::Contains("wpe.weight holds 4 positions, got sequences of 5 tokens"), ConfigError);
  for (std::int32_t wrong : {9, -1}) {
    tokens.data()[6] = wrong;
    CHECK_THROWS_WITH_AS(ctx.forward(model.layer(), tokens), doctest::Contains("at place 6"), DataError);
  }
  tokens.data()[6] = 0;
  ctx.labels.data()[5] = 9;
  auto saved = ctx.forward(model.layer(), tokens).saved;
  CHECK_THROWS_WITH_AS(ctx.backward(model.layer(), 1.0f, std::move(saved)),
                       doctest::Contains("label 9 at place 5 of the batch is outside the vocabulary of 9"), DataError);
  std::vector<std::int64_t> rows{0, 8};
  std::vector<float> out(18);
  LogitsRequest request{rows, out};
  ctx.logits = &request;
  CHECK_THROWS_WITH_AS(ctx.forward(model.layer(), tokens),
                       doctest::Contains("logits of row 8 are asked for, the input has 8"), ConfigError);
  request.out = std::span(out).first(17);
  CHECK_THROWS_WITH_AS(ctx.forward(model.layer(), tokens), doctest::Contains("2 x 9 numbers, got room for 17"),
                       ConfigError);
}

TEST_CASE("a parameter that is not in memory is named") {
  Cpu cpu;
  Context<Cpu, Fp32> ctx{cpu};
  Linear layer{"h.3.mlp.c_fc", 4, 4, {.bias = false}};
  CHECK_THROWS_WITH_AS(
      ctx.forward(layer, ctx.make<2>({1, 4})),
      doctest::Contains("parameter h.3.mlp.c_fc.weight is not in memory: a layer may touch its parameters only"),
      Error);
}
