// SPDX-License-Identifier: Apache-2.0
// The idle time of each pipeline schedule, measured: 4 stages as thread ranks, 8 micro-batches, layers that sleep for a
// fixed time in each pass, against the schedule's own timeline and against the simulator, which runs the same layers. A
// table on standard output; one JSON object a line in the file given with --json. The folders given with --svg and
// --trace get a picture, and a file for Perfetto, of each measured step: pipeline_SCHEDULE.svg and .json.
//
//   bench_bubble [--milliseconds M] [--json FILE] [--svg FOLDER] [--trace FOLDER]
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>

#include <zeropp/app/log/timeline.hpp>
#include <zeropp/app/log/trace_json.hpp>
#include <zeropp/zero.hpp>

#include "timed_layer.hpp"

using namespace zeropp;
using namespace bench;

namespace {

using Clock = std::chrono::steady_clock;

constexpr int stages = 4, micro_batches = 8, blocks = 8;

/// Seconds of one step, the second of two; it is recorded.
double seconds_of_step(PipelineKind kind, int chunks, const PassTimes& times, Trace& trace) {
  double seconds = 0;
  run_ranks(stages, {}, [&](Comm comm) {
    Cpu device;
    auto& recorder = trace.rank(comm.rank());
    comm.record(&recorder);
    const Mesh mesh{comm, {.pipeline = stages}};
    Sharded<PipelineStage<TimedModel>, Stage::none> model{
        mesh, device, TimedModel::stage(mesh.pipeline(), kind, chunks, blocks, times)};
    auto batch = Batch::on(device, micro_batches, 4);
    std::fill_n(batch.tokens.data(), batch.tokens.size(), 1);
    std::fill_n(batch.labels.data(), batch.labels.size(), 1);
    for (int step = 0; step < 2; ++step) {
      comm.barrier();
      recorder.clear();
      const auto begin = Clock::now();
      model.train(batch, {.micro_batches = micro_batches});
      comm.barrier();
      if (comm.rank() == 0) seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
  });
  return seconds;
}

void write(const std::string& folder, const std::string& name, const std::string& content) {
  if (folder.empty()) return;
  std::ofstream file(folder + "/" + name);
  if (!(file << content)) throw Error("cannot write " + folder + "/" + name);
}

struct Case {
  const char* name;
  PipelineKind kind;
  int chunks;
};

}  // namespace

int main(int argc, char** argv) try {
  double unit = 40e-3;
  std::string json, svg, traces;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) return std::fprintf(stderr, "bench_bubble: no value follows %s\n", flag.c_str()), 2;
    if (flag == "--milliseconds")
      unit = std::atof(argv[i + 1]) * 1e-3;
    else if (flag == "--json")
      json = argv[i + 1];
    else if (flag == "--svg")
      svg = argv[i + 1];
    else if (flag == "--trace")
      traces = argv[i + 1];
    else
      return std::fprintf(stderr, "bench_bubble: unknown option %s\n", flag.c_str()), 2;
  }
  if (!(unit > 0)) return std::fprintf(stderr, "bench_bubble: --milliseconds must be above 0\n"), 2;
  std::ofstream out;
  if (!json.empty()) out.open(json);
  const PassTimes of_block{unit, unit, unit};
  std::printf("%d stages, %d micro-batches, passes of %.0f ms a block and %d blocks\n", stages, micro_batches,
              unit * 1e3, blocks);
  std::printf("%-14s %12s %12s %12s %10s %10s %10s\n", "schedule", "timeline s", "simulated s", "measured s",
              "meas./sim.", "bubble", "measured");
  for (auto [name, kind, chunks] : {Case{"gpipe", PipelineKind::gpipe, 1},
                                    {"1f1b", PipelineKind::one_forward_one_backward, 1},
                                    {"interleaved", PipelineKind::interleaved, 2},
                                    {"zb-h1", PipelineKind::zb_h1, 1},
                                    {"zb-v", PipelineKind::zb_v, 2}}) {
    const double of_part = unit * blocks / stages / chunks;
    const auto line =
        PipelineTimeline::of(make_schedule(kind, stages, micro_batches, chunks), {of_part, of_part, of_part});
    Trace trace;
    const double seconds = seconds_of_step(kind, chunks, of_block, trace),
                 busy = 3 * unit * blocks / stages * micro_batches;
    const double simulated = timed_step(kind, stages, micro_batches, chunks, blocks, of_block).seconds;
    write(svg, text("pipeline_", name, ".svg"),
          timeline_svg(trace, text(name, ": ", stages, " stages, ", micro_batches, " micro-batches")));
    write(traces, text("pipeline_", name, ".json"), trace_json(trace));
    const double bubble = 1 - busy / seconds;
    std::printf("%-14s %12.4f %12.4f %12.4f %10.4f %10.4f %10.4f\n", name, line.end, simulated, seconds,
                seconds / simulated, line.bubble(), bubble);
    if (out.is_open())
      out << "{\"schedule\": \"" << name << "\", \"stages\": " << stages << ", \"micro_batches\": " << micro_batches
          << ", \"unit_seconds\": " << unit << ", \"timeline_seconds\": " << line.end
          << ", \"simulated_seconds\": " << simulated << ", \"measured_seconds\": " << seconds
          << ", \"timeline_bubble\": " << line.bubble() << ", \"measured_bubble\": " << bubble << "}\n";
  }
} catch (const Error& error) {
  std::fprintf(stderr, "bench_bubble: %s\n", error.what());
  return static_cast<int>(error.exit_code());
}
