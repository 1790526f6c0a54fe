// SPDX-License-Identifier: Apache-2.0
// mini_gpt: a GPT on text, on any number of ranks. See README.md; `mini_gpt --help` lists the flags.
#include <cstdio>
#include <fstream>
#include <future>

#include <zeropp/app/data/load_corpus.hpp>
#include <zeropp/app/log/plan_report.hpp>
#include <zeropp/app/log/timeline.hpp>
#include <zeropp/app/log/trace_json.hpp>
#include <zeropp/comm/launch.hpp>

#include "gpu.hpp"
#include "record.hpp"
#include "simulate.hpp"

using namespace mini_gpt;

namespace {

/// Prints the memory that each rank of a run on `ranks` ranks will hold.
void print_plan(const Settings& s, int ranks, const World& world, Console& console) {
  const auto room = s.backend == "cuda" ? gpu::room() : bytes_text(machine_memory()) + " on this machine";
  zeropp::print_plan(console, world, s, ranks, s.tokens(), room, [&](const Mesh& mesh) {
    if (s.backend == "cuda") return gpu::plan(s, mesh);
    return with_precision(s.precision, [&]<class P>() { return plan_of<P, Dry>(s, mesh); });
  });
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
  Settings s;
  try {
    if (argc > 1 && std::string_view(argv[1]) == "export") return export_command(argc, argv);
    if (const int code = parse(argc, argv, s); code >= 0) return code;
    if (!s.simulation.empty()) return simulate(s), 0;
    if (!s.dry_run && !s.doctor) look_into_checkpoint(s);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
  const Interrupt interrupt;  // from here on: a signal before the first step ends after it
  const Data data = std::async(std::launch::deferred, [&] {
                      return load_corpus({.path = s.data,
                                          .format = s.format,
                                          .vocabulary = s.model.tokens ? s.model.tokens : s.model.vocabulary,
                                          .held_out = s.held_out,
                                          .tokenizer = s.tokenizer,
                                          .stored = s.kept_tokenizer,
                                          .learns = s.weights.empty()});
                    }).share();
  return launch(LaunchOptions{.ranks = s.dry_run ? 1 : s.ranks}, [&](World& world) {
    Console console{world.rank == 0};
    const int ranks = s.dry_run ? std::max(1, s.ranks) : world.size;
    s.check(ranks);
    if (s.doctor) {
      Cpu device{{.threads = s.threads}};
      console.line(describe_machine(world.comm, device));
      if (s.backend == "cuda") console.line(gpu::describe(s, world));
      print_plan(s, ranks, world, console);
      return 0;
    }
    console.line(text("ranks: ", ranks, " (", world.source, "), ",
                      s.backend == "cuda" ? std::string("on GPUs") : text("threads of a rank: ", s.threads)));
    print_plan(s, ranks, world, console);
    if (s.dry_run) return 0;
    if (world.rank == 0) FileSystem::system().make_folders(s.out);
    const int code = train(s, world, data);
    std::string again;
    for (int i = 0; i < argc; ++i) again += shell_word(argv[i]) + " ";
    console.line(text("resume with ", again, "--resume auto"));
    return code;
  });
}
