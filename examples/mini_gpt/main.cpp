// SPDX-License-Identifier: Apache-2.0
// mini_gpt: a GPT on text, on any number of ranks. See README.md; `mini_gpt --help` lists the flags.
#include "train.hpp"

using namespace mini_gpt;

namespace {

/// Of `ranks` ranks.
void print_plan(const Settings& s, int ranks, const World& world, Console& console) {
  zeropp::print_plan(console, world, s, ranks, s.tokens(), [&](const Mesh& mesh) {
    return s.precision == "bf16" ? plan_of<Bf16>(s, mesh) : plan_of<Fp32>(s, mesh);
  });
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
    const int ranks = s.dry_run ? std::max(1, s.ranks) : world.size;
    s.check(ranks);
    if (s.doctor) {
      Cpu device{{.threads = s.threads}};
      console.line(describe_machine(world.comm, device));
      print_plan(s, ranks, world, console);
      return 0;
    }
    console.line(text("ranks: ", ranks, " (", world.source, "), threads of a rank: ", s.threads));
    print_plan(s, ranks, world, console);
    if (s.dry_run) return 0;
    if (world.rank == 0) FileSystem::system().make_folders(s.out);
    const int code = s.precision == "bf16" ? train<Bf16>(s, world, data) : train<Fp32>(s, world, data);
    std::string again;
    for (int i = 0; i < argc; ++i) again += shell_word(argv[i]) + " ";
    console.line(text("resume with ", again, "--resume auto"));
    return code;
  });
}
