// SPDX-License-Identifier: Apache-2.0
// When activations live and die: peaks of chains to the byte, evaluation that keeps nothing, results written into
// memory that nobody needs any more, a dry device that plans the same bytes.
#include <doctest/doctest.h>

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

constexpr std::int64_t width = 16;
constexpr Extents<3> shape{2, 8, width};
constexpr std::size_t tensor_bytes = 2 * 8 * width * sizeof(float);

/// A layer that saves nothing and makes a new output each way.
struct Copy {
  std::array<Parameter*, 0> parameters() { return {}; }
  template <class C, class X>
  auto forward(C& ctx, X x) {
    return Forward{ctx.make_like(x), None{}};
  }
  template <class C, class X>
  auto backward(C& ctx, X dy, None) {
    return ctx.make_like(dy);
  }
};

/// Peak of activations, in tensors of `shape`: forward, and where it trains backward of a dy that takes y's place.
template <class L>
double peak_tensors(L layer, Mode mode) {
  Dry dry;
  Placed<L, Fp32, Dry> model{dry, std::move(layer)};
  Pool::Program program(dry.pool(), "run");
  {
    auto ctx = model.context({.mode = mode});
    auto [y, saved] = ctx.forward(model.layer(), ctx.template make<3>(shape));
    const auto like = y.shape();
    y = {};
    if (mode == Mode::training) ctx.backward(model.layer(), ctx.template make<3>(like), std::move(saved));
  }
  program.finish();
  return static_cast<double>(dry.pool().peak()[Purpose::activations]) / static_cast<double>(tensor_bytes);
}

template <class L, class Make>
Repeat<L> repeat(int depth, Make make) {
  Repeat<L> all;
  for (int i = 0; i < depth; ++i) all.children.push_back(make(text("h.", i, ".")));
  return all;
}
Linear square(const std::string& name) { return Linear{name + "l", width, width}; }

/// All layers there are, in one model.
struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<RmsNorm, SwiGlu>,
                          Residual<LayerNorm, Mlp, Dropout>> {
  explicit Block(const std::string& h)
      : Sequential{{LayerNorm{h + "ln_1", width},
                    CausalSelfAttention{h + "attn", {.width = width, .heads = 4, .kv_heads = 2, .rope_base = 10000}},
                    Dropout{h + "drop_1", 0.1f}},
                   {RmsNorm{h + "ln_2", width}, SwiGlu{h + "gated", width, 24}},
                   {LayerNorm{h + "ln_3", width}, Mlp{h + "mlp", width, 4 * width}, Dropout{h + "drop_2", 0.1f}}} {}
};
template <class B>
struct Gpt : Sequential<GptEmbedding, Repeat<B>, Gelu, LayerNorm, LmHead> {
  explicit Gpt(int depth)
      : Sequential<GptEmbedding, Repeat<B>, Gelu, LayerNorm, LmHead>{
            GptEmbedding{{.vocabulary = 31, .sequence = 8, .width = width}},
            repeat<B>(depth, [](const std::string& h) { return B{Block{h}}; }), Gelu{}, LayerNorm{"ln_f", width},
            LmHead{"lm_head", 31, width, {.tied_to = "wte.weight"}}} {}
};

struct Use {
  Bytes kept, peak;
  std::size_t arena;
  bool operator==(const Use&) const = default;
};
template <class P, class B, class D>
Use use_of(D& device) {
  Placed<Gpt<B>, P, D> model{device, Gpt<B>{3}};
  const auto tokens = token_tensor(device, {2, 8}, 31, 1), labels = token_tensor(device, {2, 8}, 31, 2);
  for (auto mode : {Mode::training, Mode::evaluation}) {
    Pool::Program program(device.pool(), mode == Mode::training ? "train" : "evaluate");
    {
      auto ctx = model.context({.mode = mode, .labels = labels});
      auto [loss, saved] = ctx.forward(model.layer(), tokens);
      if (mode == Mode::training) ctx.backward(model.layer(), 1.0f, std::move(saved));
      CHECK(loss.known());
    }
    program.finish();
  }
  return {device.pool().kept(), device.pool().peak(), device.pool().arena()};
}
template <class P, class B>
void check_dry() {
  Cpu cpu;
  Dry dry;
  const auto used = use_of<P, B>(cpu), planned = use_of<P, B>(dry);
  CHECK(planned == used);
  CHECK(used.peak[Purpose::activations] > 0);
  CHECK(dry.flops() > 0);
}

}  // namespace

TEST_CASE("a chain that saves nothing needs two tensors, however long") {
  for (auto mode : {Mode::training, Mode::evaluation}) {
    CHECK(peak_tensors(Sequential<Copy, Copy>{Copy{}, Copy{}}, mode) == 2);
    CHECK(peak_tensors(Sequential<Copy, Copy, Copy, Copy, Copy, Copy>{{}, {}, {}, {}, {}, {}}, mode) == 2);
    CHECK(peak_tensors(repeat<Copy>(50, [](const auto&) { return Copy{}; }), mode) == 2);
    CHECK(peak_tensors(repeat<Sequential<Copy, Copy>>(9,
                                                      [](const auto&) {
                                                        return Sequential<Copy, Copy>{{}, {}};
                                                      }),
                       mode) == 2);
  }
}

TEST_CASE("a chain of linear layers keeps the input of each; backward needs nothing more") {
  CHECK(peak_tensors(repeat<Linear>(8, square), Mode::training) == 9);
  CHECK(peak_tensors(Sequential<Linear, Linear, Linear>{square("a"), square("b"), square("c")}, Mode::training) == 4);
}

TEST_CASE("evaluation keeps nothing of any layer: one more block needs no byte more") {
  auto block = [](const std::string& h) { return Block{h}; };
  auto recomputed = [](const std::string& h) { return Recompute<Block>{Block{h}}; };
  CHECK(peak_tensors(repeat<Linear>(8, square), Mode::evaluation) == 2);
  CHECK(peak_tensors(repeat<Block>(9, block), Mode::evaluation) ==
        peak_tensors(repeat<Block>(1, block), Mode::evaluation));
  CHECK(peak_tensors(repeat<Recompute<Block>>(9, recomputed), Mode::evaluation) ==
        peak_tensors(repeat<Recompute<Block>>(1, recomputed), Mode::evaluation));
  CHECK(peak_tensors(repeat<Block>(9, block), Mode::training) > peak_tensors(repeat<Block>(1, block), Mode::training));
}

TEST_CASE("recompute keeps one tensor a block") {
  auto recomputed = [](const std::string& h) { return Recompute<Block>{Block{h}}; };
  const double two = peak_tensors(repeat<Recompute<Block>>(2, recomputed), Mode::training),
               nine = peak_tensors(repeat<Recompute<Block>>(9, recomputed), Mode::training);
  CHECK(nine - two == 7);
}

TEST_CASE("of a repeat, each block that is not recomputed keeps as much as it would alone") {
  const auto peak = [](int layers, int recomputed) {
    int made = 0;
    return peak_tensors(repeat<Recompute<Block>>(layers,
                                                 [&](const std::string& h) {
                                                   return Recompute<Block>{Block{h}, made++ < recomputed};
                                                 }),
                        Mode::training);
  };
  const auto block = [](const std::string& h) { return Block{h}; };
  const double kept =
      peak_tensors(repeat<Block>(5, block), Mode::training) - peak_tensors(repeat<Block>(4, block), Mode::training);
  CHECK(peak(5, 0) == peak_tensors(repeat<Block>(5, block), Mode::training));
  CHECK(peak(5, 5) < peak(5, 3));
  for (int recomputed : {0, 1, 2, 3}) CHECK(peak(5, recomputed) - peak(5, recomputed + 1) == kept - 1);
}

TEST_CASE("an mlp that recomputes its gelu keeps four tensors less, and backward takes no more than they were") {
  const auto peak = [](int layers, bool recompute) {
    auto mlp = [&](const std::string& h) { return Mlp{h + "mlp", width, 4 * width, {.recompute_gelu = recompute}}; };
    return peak_tensors(repeat<Mlp>(layers, mlp), Mode::training);
  };
  CHECK(peak(9, false) - peak(2, false) == 7 * 9);
  CHECK(peak(9, true) - peak(2, true) == 7 * 5);
  CHECK(peak(1, true) <= peak(1, false));
}

TEST_CASE("residual adds into the output of its inner layer, and in backward into its dx") {
  CHECK(peak_tensors(Residual<Copy>{Copy{}}, Mode::evaluation) == 2);
  CHECK(peak_tensors(Residual<Copy>{Copy{}}, Mode::training) == 2);
  CHECK(peak_tensors(Residual<Linear>{square("a")}, Mode::training) == 2);
  CHECK(peak_tensors(Residual<Linear, Linear>{square("a"), square("b")}, Mode::training) == 3);
}

TEST_CASE("residual writes into nothing that another sees") {
  Cpu cpu;
  auto sums = [&](auto layer, auto expected) {
    Placed<decltype(layer)> model{cpu, std::move(layer)};
    auto ctx = model.context({.mode = Mode::evaluation});
    const auto x = normal_tensor(ctx, shape, 7);
    const auto before = bytes_of(x);
    const auto y = ctx.forward(model.layer(), x).output;
    CHECK(bytes_of(x) == before);
    CHECK(y.data() != x.data());
    for (std::int64_t i = 0; i < x.size(); ++i) REQUIRE(y.data()[i] == expected(x.data()[i]));
    const auto dx = ctx.backward(model.layer(), x, ctx.forward(model.layer(), x).saved);
    CHECK(bytes_of(x) == before);
    for (std::int64_t i = 0; i < x.size(); ++i) REQUIRE(dx.data()[i] == expected(x.data()[i]));
  };
  // a Dropout of 0 returns its input itself: both summands are one tensor
  sums(Residual<Dropout>{Dropout{"d", 0}}, [](float x) { return x + x; });
  sums(Residual<Residual<Dropout>>{Residual<Dropout>{Dropout{"d", 0}}}, [](float x) { return x + (x + x); });
  sums(Residual<Repeat<Copy>>{Repeat<Copy>{}}, [](float x) { return x + x; });
}

TEST_CASE("attention needs memory linear in the sequence, forward and backward") {
  auto peak = [](std::int64_t sequence) {
    Dry dry;
    Placed<CausalSelfAttention, Fp32, Dry> model{dry, {"attn", {.width = 64, .heads = 4, .rope_base = 10000}}};
    Pool::Program program(dry.pool(), "run");
    {
      auto ctx = model.context();
      auto [y, saved] = ctx.forward(model.layer(), ctx.make<3>({1, sequence, 64}));
      ctx.backward(model.layer(), std::move(y), std::move(saved));
    }
    program.finish();
    return dry.pool().peak().total();
  };
  const auto thousand = peak(1 << 10);
  CHECK(peak(1 << 20) == 1024 * thousand);
  CHECK(peak(std::int64_t{1} << 32) == (std::size_t{1} << 22) * thousand);  // rows beyond 32 bits
}

TEST_CASE("the head keeps its input, and logits exist for a part of the rows") {
  Dry dry;
  constexpr std::int64_t vocabulary = 50304, rows = 8 * 1024, c = 768;
  Placed<LmHead, Fp32, Dry> model{dry, {"head", vocabulary, c}};
  const auto labels = token_tensor(dry, {8, 1024}, vocabulary, 1);
  Pool::Program program(dry.pool(), "run");
  {
    auto ctx = model.context({.labels = labels});
    auto [loss, saved] = ctx.forward(model.layer(), ctx.make<3>({8, 1024, c}));
    ctx.backward(model.layer(), 1.0f, std::move(saved));
  }
  program.finish();
  CHECK(dry.pool().peak()[Purpose::activations] == 2 * rows * c * sizeof(float));
  CHECK(dry.pool().peak()[Purpose::buffers] <= 32u << 20);
}

TEST_CASE("the dry device plans the bytes that the host uses, for a model of all layers") {
  check_dry<Fp32, Block>();
  check_dry<Fp32, Recompute<Block>>();
  check_dry<Bf16, Block>();
  check_dry<Bf16Gradients, Recompute<Block>>();
  check_dry<Fp64, Block>();
}

TEST_CASE("a plan of a model that no machine holds takes no memory") {
  Dry dry;
  Placed<Mlp, Fp32, Dry> model{dry, Mlp{"mlp", 1 << 20, 1 << 22}};
  auto ctx = model.context();
  auto [y, saved] = ctx.forward(model.layer(), ctx.make<3>({64, 1 << 16, 1 << 20}));
  ctx.backward(model.layer(), std::move(y), std::move(saved));
  CHECK(dry.pool().kept()[Purpose::weights] > std::size_t{1} << 44);
}
