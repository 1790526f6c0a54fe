// SPDX-License-Identifier: Apache-2.0
// Optimizers made of rules over a sharded model: the same bits at every stage, on any ranks, after a checkpoint on
// another mesh; parameter groups; a rule of a user's own; what cannot work is refused.
#include <doctest/doctest.h>

#include <zeropp/train/optimizers/adagrad.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>
#include <zeropp/train/optimizers/lion.hpp>
#include <zeropp/train/optimizers/sgd.hpp>

#include "support/checkpoints.hpp"

using namespace test;

namespace {

const ThreadOptions limit{.limit = std::chrono::seconds(20)};
constexpr Stage stages[] = {Stage::none, Stage::optimizer_states, Stage::gradients, Stage::parameters};
using Groups = std::vector<ParameterGroup>;

struct Run {
  int ranks = 1;
  Stage stage = Stage::none;
  int steps = 6;
  std::string load = {}, save = {};
};

/// Weights after steps whose gradients are given, element by element, so that nothing depends on the order of sums.
template <class P, class Rule>
std::string weights_of(const Rule& rule, const Groups& groups, const Run& run) {
  std::string bits;
  run_ranks(run.ranks, limit, [&](Comm comm) {
    Cpu device;
    ShardedEngine<Layers, P> model{comm, device, layers(), run.stage, {.seed = 5}};
    FusedElementwise optimizer{model, rule, groups};
    if (!run.load.empty()) {
      Checkpoints store{comm, run.load};
      if (!store.resume(model, optimizer)) throw Error(text("nothing to resume in ", run.load));
    }
    for (int step = 0; step < run.steps; ++step) {
      for (auto& unit : model.units()) {
        const Random random(6, RandomPurpose::test, static_cast<std::uint64_t>(unit.index()),
                            static_cast<std::uint64_t>(model.step()));
        auto at = unit.updated().begin;
        for (auto& g : unit.gradients()) {
          const auto value = at < unit.size() ? random.uniform(static_cast<std::uint64_t>(at)) - 0.5f : 0.0f;
          g = typename P::Gradient(value), ++at;
        }
      }
      model.finish_gradients();
      optimizer.step(1e-2f);
    }
    std::string mine;
    for (auto& unit : model.units()) {
      auto lease = unit.lease();
      mine.append(reinterpret_cast<const char*>(unit.whole().data()),
                  static_cast<std::size_t>(unit.size()) * sizeof(typename P::Weight));
    }
    if (!run.save.empty()) Checkpoints{comm, run.save}.save(model, optimizer, {.step = model.step()});
    if (comm.rank() == 0) bits = mine;
  });
  return bits;
}

/// A rule of a user's own: steps against the sign of the gradient, and keeps that sign.
struct SignDescent {
  static constexpr std::string_view name = "sign descent";
  static constexpr std::array<std::string_view, 1> slots{"last_sign"};
  float weight_decay = 0;

  constexpr std::array<kernels::RuleSetting, 0> settings() const { return {}; }
  template <class V>
  constexpr void operator()(V& weight, V gradient, V& last_sign, const auto& step) const {
    last_sign = kernels::sign(gradient);
    weight = kernels::fused(weight, step.decay, -(last_sign * step.rate));
  }
};

template <class P, class Rule>
void same_everywhere(const Rule& rule, const Groups& groups = {}) {
  CAPTURE(Rule::name);
  const auto six = weights_of<P>(rule, groups, {});
  CHECK(six != weights_of<P>(rule, groups, {.steps = 5}));
  for (int ranks : {1, 2, 3})
    for (auto stage : stages) {
      CAPTURE(ranks);
      CAPTURE(static_cast<int>(stage));
      CHECK(weights_of<P>(rule, groups, {ranks, stage}) == six);
    }
  const Folder folder;
  weights_of<P>(rule, groups, {2, Stage::gradients, 3, {}, folder.path()});
  CHECK(weights_of<P>(rule, groups, {2, Stage::gradients, 3, folder.path()}) == six);
  CHECK(weights_of<P>(rule, groups, {3, Stage::parameters, 3, folder.path()}) == six);
  CHECK(weights_of<P>(rule, groups, {1, Stage::none, 3, folder.path()}) == six);
}

}  // namespace

TEST_CASE("Lion, SGD and Adagrad have the same bits at every stage, and go on from a checkpoint on another mesh") {
  same_everywhere<Fp32>(Lion{});
  same_everywhere<Bf16>(Lion{});
  same_everywhere<Bf16>(Sgd{.weight_decay = 0.1f});
  same_everywhere<Fp32>(Adagrad{});
}

TEST_CASE("a rule of one's own is sharded and saved like the others") {
  same_everywhere<Fp32>(SignDescent{});
  same_everywhere<Bf16Stochastic>(SignDescent{});
}

TEST_CASE("parameter groups: a rate, a decay, wherever shards cut the parameters") {
  const Groups groups{{.pattern = "h.0.attn.c_attn.*", .rate = 0}, {.pattern = "h.*", .rate = 0.5f, .weight_decay = 0.2f}};
  same_everywhere<Fp32>(AdamW{}, groups);
  const auto plain = weights_of<Fp32>(AdamW{}, {}, {}), apart = weights_of<Fp32>(AdamW{}, groups, {}),
             start = weights_of<Fp32>(AdamW{}, {}, {.steps = 0});
  const auto part = [](const std::string& bits, std::size_t begin, std::size_t count) {
    return bits.substr(4 * begin, 4 * count);
  };
  // Units: wte (35), then c_attn (27), c_proj's weight (9) and bias (3), then one (1).
  CHECK(part(apart, 0, 35) == part(plain, 0, 35));
  CHECK(part(apart, 35, 27) == part(start, 35, 27));
  CHECK(part(apart, 62, 9) != part(plain, 62, 9));
  CHECK(part(apart, 62, 9) != part(start, 62, 9));
  CHECK(part(apart, 74, 1) == part(plain, 74, 1));
}

TEST_CASE("settings that cannot work, groups of nothing, and another optimizer's states are refused") {
  const auto refused = [](auto rule, const Groups& groups = {}) {
    return sentence_of([&] {
      Cpu device;
      ShardedEngine<Layers, Fp32> model{Comm{}, device, layers(), Stage::none, {}};
      FusedElementwise optimizer{model, rule, groups};
    });
  };
  CHECK(refused(Lion{.beta1 = 1}) == "lion's beta1 must be at least 0 and below 1, got 1");
  CHECK(refused(Sgd{.weight_decay = -1}) == "sgd's weight_decay must be finite and at least 0, got -1");
  CHECK(contains(refused(AdamW{.epsilon = 0}), "adam's epsilon must be finite and at least "));
  CHECK(contains(refused(AdamW{.epsilon = 1e-50}), "adam's epsilon must be finite and at least "));
  CHECK(contains(refused(AdamW{.beta2 = std::numeric_limits<float>::quiet_NaN()}), "adam's beta2 must be"));
  CHECK(refused(Lion{}, {{.pattern = "h.1.*"}}) ==
        "no parameter of the model is called \"h.1.*\", as a parameter group has it; its first is wte.weight");
  CHECK(contains(refused(Lion{}, {{.pattern = "h.*", .rate = -1}}), "the parameter group \"h.*\" has the rate -1"));
  CHECK(contains(refused(Lion{}, {{.pattern = "h.*", .weight_decay = 1e38f * 10}}), "has the weight decay inf"));

  const Folder folder;
  weights_of<Fp32>(Lion{}, {}, {.steps = 2, .save = folder.path()});  // an older one would do, and is not taken
  weights_of<Fp32>(AdamW{}, {}, {.steps = 3, .save = folder.path()});
  const auto sentence = sentence_of([&] { weights_of<Fp32>(Lion{}, {}, {.steps = 1, .load = folder.path()}); });
  CHECK(contains(sentence, "holds the states of the optimizer adam, which lion cannot go on from"));
}

TEST_CASE("the page of optimizers quotes Lion as it is") {
  const std::string source = ZEROPP_TEST_SOURCE;
  const auto page = contents(source + "/../docs/optimizers.md"),
             header = contents(source + "/../include/zeropp/train/optimizers/lion.hpp");
  const auto begin = header.find("struct Lion {"), end = header.find("\n};\n", begin) + 4;
  REQUIRE(begin != std::string::npos);
  CHECK(contains(page, header.substr(begin, end - begin)));
}
