// SPDX-License-Identifier: Apache-2.0
// mini_gpt: a GPT on text, on any number of ranks. See README.md; `mini_gpt --help` lists the flags.
#include <csignal>
#include <cstdio>
#include <fstream>
#include <future>

#include <zeropp/app/data/load_corpus.hpp>
#include <zeropp/app/log/plan_report.hpp>
#include <zeropp/app/log/settings_report.hpp>
#include <zeropp/app/log/timeline.hpp>
#include <zeropp/app/log/trace_json.hpp>
#include <zeropp/comm/launch.hpp>
#include <zeropp/train/checkpoint/weight_files.hpp>

#include "gpu.hpp"
#include "record.hpp"
#include "simulate.hpp"

using namespace mini_gpt;

namespace {

/// Prints the memory that each rank of a run on `ranks` ranks will hold, and all of them if they are threads.
void print_plan(const Settings& s, int ranks, const World& world, Console& console) {
  const bool gpus = s.backend == "cuda";
  const PlanRoom room{gpus ? gpu::room() : bytes_text(machine_memory()) + " on this machine",
                      gpus || ranks_in_environment().size != 1 ? 0 : machine_memory()};
  zeropp::print_plan(console, world, s, ranks, s.tokens(), room, [&](const Mesh& mesh) {
    if (s.backend == "cuda") return gpu::plan(s, mesh);
    return with_precision(s.precision, [&]<class P>() { return plan_of<P, Dry>(s, mesh); });
  });
}

/// The rest of a dry run: whether the data make a batch, and the weights are of this model. Throws DataError.
void open_inputs(const Settings& s, const Data& data, Console& console) {
  if (!s.data.empty()) {
    const auto& [training, validation] = data.get().split;
    const LoaderOptions options{s.rows, s.model.block_size, s.seed};
    const TokenLoader loader{training, options};
    (void)EvaluationLoader{validation, options};
    console.line(text("data: ", grouped(training.size()), " training tokens, ", grouped(validation.size()),
                      " held out; an epoch takes ", counted(ceil_div(loader.windows(), s.rows), "step")));
  }
  if (!s.weights.empty()) {
    Gpt gpt{s.model};
    WeightFiles(FileSystem::system(), s.weights).match<float>(parameters_of(gpt), Naming::gpt2(), s.model.tokens);
    console.line(text("weights: ", s.weights, " has every tensor of this model"));
  }
}

int train(const Settings& s, const World& world, const Data& data) {
  if (s.backend == "cuda") return gpu::train(s, world, data);
  Cpu device{{.threads = s.threads}};
  const Ceiling ceiling{gemm_rate(world.comm, device, 256, s.model.n_embd), machine_memory()};
  return with_precision(s.precision, [&]<class P>() { return train<P>(s, world, data, device, ceiling); });
}

void simulate(const Settings& given) {
  const auto file = read_simulation(given.simulation, read_text(FileSystem::system(), given.simulation));
  const auto s = settings_of(file);
  Trace trace;
  auto* const recorded = given.trace.empty() ? nullptr : &trace;
  const auto step =
      with_precision(file.precision, [&]<class P>() { return simulate_of<P>(s, file.simulation, recorded); });
  Console{true}.line(describe(step) + describe_ranks(step));
  if (!recorded) return;
  const auto title = text(step.mesh, ", ", s.pipeline_schedule);
  std::ofstream out(given.trace);
  out << (given.trace.ends_with(".svg") ? timeline_svg(trace, title) : trace_json(trace)) << std::flush;
  if (!out) throw DataError(text("cannot write ", given.trace));
}

}  // namespace

int main(int argc, char** argv) {
  hold_standard_descriptors();
  std::signal(SIGPIPE, SIG_IGN);  // a reader of our output that went away ends nothing
  Settings given;
  try {
    if (argc > 1 && std::string_view(argv[1]) == "export") return export_command(argc, argv);
    if (const int code = parse(argc, argv, given); code >= 0) return code;
    if (!given.simulation.empty()) return simulate(given), 0;
    if (!given.doctor) look_into_checkpoint(given);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
  const Data data = std::async(std::launch::deferred, [&] {
                      return load_corpus({.path = given.data,
                                          .format = given.format,
                                          .vocabulary = given.model.tokens ? given.model.tokens : given.model.vocabulary,
                                          .held_out = given.held_out,
                                          .tokenizer = given.tokenizer,
                                          .stored = given.kept_tokenizer,
                                          .learns = given.weights.empty()});
                    }).share();
  // One rank plans for as many as are asked for, unless a launcher started some.
  const bool planned = given.dry_run && given.ranks > 0 && ranks_in_environment().size == 1;
  return launch(LaunchOptions{.ranks = planned ? 1 : given.ranks}, [&](World& world) {
    Console console{world.rank == 0};
    const int ranks = planned ? given.ranks : world.size;
    const Settings s = given.on(ranks, world.source);
    if (s.doctor) {
      Cpu device{{.threads = s.threads}};
      console.line(describe_machine(world.comm, device));
      if (s.backend == "cuda") console.line(gpu::describe(s, world));
      print_plan(s, ranks, world, console);
      return 0;
    }
    console.line(text("ranks: ", ranks, " (", planned ? text("--ranks ", ranks) : world.source, "), ",
                      s.backend == "cuda" ? std::string("on GPUs") : text("threads of a rank: ", s.threads)));
    if (s.dry_run) console.line(describe_settings(s.all(ranks), s.origins) + "\n" + describe_rates(s));
    if (!s.notes.empty()) console.line(describe_notes(s));
    print_plan(s, ranks, world, console);
    if (s.dry_run) return open_inputs(s, data, console), 0;
    if (world.rank == 0) FileSystem::system().make_folders(s.out);
    const int code = train(s, world, data);
    if (code < 128) return code;
    std::string again;  // a signal ended the run, and a checkpoint is there
    for (int i = 0; i < argc; ++i) again += shell_word(argv[i]) + " ";
    console.line(text("resume with ", again, "--resume auto"));
    return code;
  });
}
