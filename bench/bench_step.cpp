// SPDX-License-Identifier: Apache-2.0
// One training step, measured: the overhead of each stage over stage 0, and a GPT-2 step against the GEMM rate of the
// same run. A table on standard output; one JSON object a line in the file given with --json.
//
//   bench_step [--model small|124M] [--ranks N] [--batch B] [--sequence T] [--steps N] [--json FILE]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <zeropp/app/machine.hpp>
#include <zeropp/zero.hpp>

using namespace zeropp;

namespace {

struct Settings {
  std::string model = "small", json;
  int ranks = 2, steps = 5;
  std::int64_t batch = 4, sequence = 256, vocabulary = 512, width = 256, heads = 4, layers = 4;
};

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention>, Residual<LayerNorm, Mlp>> {
  Block(const Settings& s, const std::string& h)
      : Sequential{
            {LayerNorm{h + "ln_1", s.width}, CausalSelfAttention{h + "attn", {.width = s.width, .heads = s.heads}}},
            {LayerNorm{h + "ln_2", s.width}, Mlp{h + "mlp", s.width, 4 * s.width}}} {}
};
struct Gpt : Sequential<GptEmbedding, Repeat<Block>, LayerNorm, LmHead> {
  explicit Gpt(const Settings& s)
      : Sequential{GptEmbedding{{.vocabulary = s.vocabulary, .sequence = s.sequence, .width = s.width}},
                   {},
                   LayerNorm{"ln_f", s.width},
                   LmHead{"lm_head", s.vocabulary, s.width, {.tied_to = "wte.weight"}}} {
    for (std::int64_t i = 0; i < s.layers; ++i) std::get<1>(children).children.emplace_back(s, text("h.", i, "."));
  }
};

/// Steps of the stages are taken in turn, so that a drift of the machine's speed meets all of them alike.
template <Stage S>
struct Engine {
  Engine(const Comm& comm, const Settings& s)
      : model{comm, device, Gpt{s}},
        adam{model},
        batch{Batch::on(
            device, part_begin(s.batch, comm.rank() + 1, comm.size()) - part_begin(s.batch, comm.rank(), comm.size()),
            s.sequence)} {
    for (std::int64_t i = 0; i < batch.tokens.size(); ++i) {
      batch.tokens.data()[i] = static_cast<std::int32_t>(i * 7919 % s.vocabulary);
      batch.labels.data()[i] = static_cast<std::int32_t>(i * 104729 % s.vocabulary);
    }
  }
  double step() {
    model.comm().barrier();
    const auto begin = steady_seconds();
    model.train(batch);
    adam.step(1e-4f, clip_by_global_norm(model, 1.0f));
    model.comm().barrier();
    return steady_seconds() - begin;
  }
  Cpu device;
  Sharded<Gpt, S> model;
  FusedAdam<Sharded<Gpt, S>> adam;
  Batch batch;
};

struct Row {
  std::string name;
  double seconds;  ///< the best step
  std::size_t planned;
};

template <Stage S>
Row measure(const Comm& comm, const Settings& s, const char* name, std::int64_t& parameters) {
  Engine<S> engine{comm, s};
  parameters = engine.model.parameters();
  double best = 1e300;
  for (int i = 0; i < s.steps + 1; ++i) {
    const double seconds = engine.step();
    if (i > 0) best = std::min(best, seconds);  // the first one records the plan
  }
  return {name, best, engine.device.pool().planned()};
}

/// All four stages held at once, their steps in turn, so that a drift of the machine's speed meets all alike.
std::vector<Row> compare_stages(const Comm& comm, const Settings& s, std::int64_t& parameters) {
  Engine<Stage::none> none{comm, s};
  Engine<Stage::optimizer_states> states{comm, s};
  Engine<Stage::gradients> gradients{comm, s};
  Engine<Stage::parameters> weights{comm, s};
  parameters = none.model.parameters();
  std::vector<Row> rows{{"stage 0", 1e300, 0}, {"stage 1", 1e300, 0}, {"stage 2", 1e300, 0}, {"stage 3", 1e300, 0}};
  for (int i = 0; i < s.steps + 1; ++i) {
    const double seconds[] = {none.step(), states.step(), gradients.step(), weights.step()};
    for (std::size_t k = 0; k < 4 && i > 0; ++k) rows[k].seconds = std::min(rows[k].seconds, seconds[k]);
  }
  rows[0].planned = none.device.pool().planned();
  rows[1].planned = states.device.pool().planned();
  rows[2].planned = gradients.device.pool().planned();
  rows[3].planned = weights.device.pool().planned();
  return rows;
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--model")
      s.model = value;
    else if (flag == "--ranks")
      s.ranks = std::atoi(value.c_str());
    else if (flag == "--batch")
      s.batch = std::atoll(value.c_str());
    else if (flag == "--sequence")
      s.sequence = std::atoll(value.c_str());
    else if (flag == "--steps")
      s.steps = std::atoi(value.c_str());
    else if (flag == "--json")
      s.json = value;
    else
      throw ConfigError(text("unknown flag ", flag, "; see the head of bench_step.cpp"));
  }
  if (s.model == "124M") {
    s.vocabulary = 50304, s.width = 768, s.heads = 12, s.layers = 12;
  } else if (s.model != "small") {
    throw ConfigError(text("--model is small or 124M, got ", s.model));
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  try {
    s = parse(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
  return launch(LaunchOptions{.ranks = s.ranks}, [&](World& world) {
    std::int64_t parameters = 0;
    Cpu device;
    const double rate = gemm_rate(world.comm, device, s.batch * s.sequence / world.size, s.width, 20);
    const auto rows = s.model == "124M" ? std::vector{measure<Stage::gradients>(world.comm, s, "stage 2", parameters)}
                                        : compare_stages(world.comm, s, parameters);
    if (world.rank != 0) return;
    const double tokens = static_cast<double>(s.batch * s.sequence);
    const double flops =
        tokens * (6.0 * static_cast<double>(parameters) + 6.0 * static_cast<double>(s.layers * s.width * s.sequence));
    std::printf("GPT %s, %.1f M parameters, B %lld T %lld, %d thread ranks; products in the same run: %.1f GFLOP/s\n",
                s.model.c_str(), static_cast<double>(parameters) / 1e6, static_cast<long long>(s.batch),
                static_cast<long long>(s.sequence), world.size, rate / 1e9);
    std::printf("%-8s %10s %12s %14s %10s %12s\n", "", "ms/step", "tokens/s", "of GEMM rate", "/ stage 0",
                "MiB a rank");
    std::ofstream json(s.json.empty() ? "/dev/null" : s.json, std::ios::app);
    for (const auto& row : rows) {
      std::printf("%-8s %10.1f %12.0f %13.1f%% %10.3f %12.1f\n", row.name.c_str(), 1e3 * row.seconds,
                  tokens / row.seconds, 100 * flops / row.seconds / rate, row.seconds / rows[0].seconds,
                  static_cast<double>(row.planned) / (1 << 20));
      json << text({"{\"model\":\"",
                    s.model,
                    "\",\"name\":\"",
                    row.name,
                    "\",\"ranks\":",
                    world.size,
                    ",\"batch\":",
                    s.batch,
                    ",\"sequence\":",
                    s.sequence,
                    ",\"seconds\":",
                    row.seconds,
                    ",\"gemm_flops\":",
                    rate,
                    ",\"fraction_of_gemm\":",
                    flops / row.seconds / rate,
                    ",\"over_first\":",
                    row.seconds / rows[0].seconds,
                    ",\"bytes\":",
                    row.planned,
                    "}\n"});
    }
  });
}
