// SPDX-License-Identifier: Apache-2.0
// A step of a GPT on a cluster that need not be there: its time, idle time, traffic and bytes a rank, from the engine
// itself (docs/simulate.md). With --ranks a line for each stage's first rank, with --svg a picture of the passes, with
// --trace a file that Perfetto opens.
//
//   simulate mesh.json [--ranks] [--svg FILE] [--trace FILE]
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "run.hpp"

using namespace zeropp;

namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf())) throw DataError(text("cannot read ", path));
  return content.str();
}

void write(const std::string& path, const std::string& content) {
  if (path.empty()) return;
  std::ofstream file(path);
  if (!(file << content << std::flush)) throw DataError(text("cannot write ", path));
}

}  // namespace

int main(int argc, char** argv) try {
  constexpr auto usage = "usage: simulate mesh.json [--ranks] [--svg FILE] [--trace FILE]";
  std::string path, svg, traces;
  bool each = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--ranks") {
      each = true;
      continue;
    }
    auto* into = word == "--svg"                  ? &svg
                 : word == "--trace"              ? &traces
                 : path.empty() && word[0] != '-' ? &path
                                                  : nullptr;
    if (!into) throw ConfigError(text("unknown word ", word, "; ", usage));
    if (into != &path && ++i == argc) throw ConfigError(text("no file follows ", word, "; ", usage));
    *into = argv[i];
  }
  if (path.empty()) throw ConfigError(usage);
  const auto settings = read_simulation(path, content_of(path));
  Trace trace;
  auto* const recorded = svg.empty() && traces.empty() ? nullptr : &trace;
  const auto step = settings.precision == "bf16" ? run<Bf16>(settings, recorded) : run<Fp32>(settings, recorded);
  std::fputs(describe(step).c_str(), stdout);
  if (each) std::fputs(describe_ranks(step).c_str(), stdout);
  write(svg, timeline_svg(trace, text(step.mesh, ", ", name_of(settings.schedule))));
  write(traces, trace_json(trace));
} catch (const Error& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return static_cast<int>(error.exit_code());
}
