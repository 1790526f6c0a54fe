// SPDX-License-Identifier: Apache-2.0
// The example of a layer of one's own: it runs, its gradients are right, it trains to the same bytes at every stage,
// and docs/own_layer.md quotes it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include <zeropp/zero.hpp>

#include "support/gradients.hpp"

namespace own {
#include "../examples/own_layer/main.cpp"
}  // namespace own

using namespace test;

namespace {

std::string read(const std::string& path) {
  std::ifstream in(path);
  REQUIRE_MESSAGE(in, path);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

own::Model small() {
  return {GptEmbedding{{.vocabulary = 11, .width = 6}},
          {{own::Block{"h.0.", 6}, own::Block{"h.1.", 6}}},
          LayerNorm{"ln_f", 6},
          LmHead{"lm_head", 11, 6, {.tied_to = "wte.weight"}}};
}

template <Stage S>
std::vector<double> losses(int ranks) {
  std::vector<double> all;
  run_ranks(ranks, {.limit = std::chrono::seconds(20)}, [&](Comm comm) {
    Cpu cpu;
    Sharded<own::Model, S> model{comm, cpu, small()};
    FusedAdam adam{model};
    auto batch = Batch::on(cpu, 2, 5);
    for (int i = 0; i < 10; ++i) batch.tokens.data()[i] = batch.labels.data()[i] = (i + comm.rank()) % 11;
    for (int step = 0; step < 30; ++step) {
      const auto loss = model.train(batch).mean();
      adam.step(1e-2f);
      if (comm.rank() == 0) all.push_back(loss);
    }
  });
  return all;
}

}  // namespace

TEST_CASE("the example runs to its end, on one rank and on two") {
  for (const char* ranks : {"--ranks=1", "--ranks=2"}) {
    char name[] = "own_layer";
    std::string argument = ranks;
    char* arguments[] = {name, argument.data()};
    CHECK(own::main(2, arguments) == 0);
  }
}

TEST_CASE("its gradients are those of finite differences") {
  check_width(own::TokenShift{"shift", 6}, 6);
  check_width(own::Block{"h.", 6}, 6);
}

TEST_CASE("it plans on the dry device") {
  Dry dry;
  Placed<own::TokenShift, Fp32, Dry> model{dry, {"shift", 1 << 20}};
  const auto before = dry.kernels();
  auto ctx = model.context();
  auto [y, saved] = ctx.forward(model.layer(), ctx.make<3>({64, 1 << 16, 1 << 20}));
  ctx.backward(model.layer(), std::move(y), std::move(saved));
  CHECK(dry.kernels() - before == 2);
}

TEST_CASE("it learns, with the same losses at every stage") {
  const auto base = losses<Stage::none>(2);
  CHECK(base.back() < base.front() / 2);
  CHECK(losses<Stage::gradients>(2) == base);
  CHECK(losses<Stage::parameters>(2) == base);
}

TEST_CASE("the code in docs/own_layer.md stands in the example, which has less than 80 lines") {
  const std::string here = __FILE__, root = here.substr(0, here.rfind("tests/"));
  const auto code = read(root + "examples/own_layer/main.cpp"), text = read(root + "docs/own_layer.md");
  CHECK(std::count(code.begin(), code.end(), '\n') < 80);
  int blocks = 0;
  for (std::size_t at = 0; (at = text.find("```cpp\n", at)) != std::string::npos; ++blocks) {
    at += 7;
    const auto end = text.find("```", at);
    const auto block = text.substr(at, end - at);
    CHECK_MESSAGE(code.find(block) != std::string::npos, block);
    at = end + 3;
  }
  CHECK(blocks >= 4);
}

TEST_CASE("a plan says what lives on other tiers, where something does") {
  Plan plan;
  plan.total = 1000;
  const auto resident = describe(plan);
  CHECK(resident.find("(1,000 B)") == resident.size() - 9);
  auto& disk = plan.homes[static_cast<std::size_t>(Home::disk)];
  disk.now = disk.peak = disk.by[Purpose::states] = 3 << 20;
  CHECK(describe(plan) == resident + "\n  on disk      3.0 MiB (states 3145728 B)");
}
