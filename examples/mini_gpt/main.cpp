// SPDX-License-Identifier: Apache-2.0
// mini_gpt: a GPT on text, on any number of ranks. See README.md; `mini_gpt --help` lists the flags.
#include "train.hpp"

using namespace mini_gpt;

namespace {

void print_plan(const Settings& s, const Comm& comm, Console& console) {
  const auto of_rank = [&](int rank) {
    return s.precision == "bf16" ? plan_of<Bf16>(s, rank, comm.size()) : plan_of<Fp32>(s, rank, comm.size());
  };
  const auto first = of_rank(0), last = of_rank(comm.size() - 1);
  console.heading(text("plan of rank 0 of ", comm.size(), ": ZeRO-", s.zero, ", ", s.precision,
                       s.recompute ? ", recompute, " : ", ", grouped(s.tokens()), " tokens a step in ",
                       s.micro_batches(comm.size()), " micro-batches"));
  console.line(describe(first) + text(" of ", bytes_text(machine_memory()), " on this machine"));
  if (last.total != first.total)
    console.line(text("  last rank    ", grouped(static_cast<std::int64_t>(last.total)), " B"));
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  try {
    if (const int code = parse(argc, argv, s); code >= 0) return code;
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
  const Interrupt interrupt;  // from here on: a signal before the first step ends after it
  const Data data = std::async(std::launch::deferred, [&] {
                      return Corpus::load({s.data, s.format == "raw", s.model.vocabulary, s.held_out});
                    }).share();
  return launch(LaunchOptions{.ranks = s.dry_run ? 1 : s.ranks}, [&](World& world) {
    Console console{world.rank == 0};
    const auto comm = s.dry_run ? dry_comm(0, std::max(1, s.ranks)) : world.comm;
    s.check(comm.size());
    if (s.doctor) {
      Cpu device{{.threads = s.threads}};
      console.line(describe_machine(comm, device));
      print_plan(s, comm, console);
      return 0;
    }
    console.line(text("ranks: ", comm.size(), " (", world.source, "), threads of a rank: ", s.threads));
    print_plan(s, comm, console);
    if (s.dry_run) return 0;
    if (world.rank == 0) FileSystem::system().make_folders(s.out);
    const int code = s.precision == "bf16" ? train<Bf16>(s, world, data) : train<Fp32>(s, world, data);
    std::string again;
    for (int i = 0; i < argc; ++i) again += shell_word(argv[i]) + " ";
    console.line(text("resume with ", again, "--resume auto"));
    return code;
  });
}
