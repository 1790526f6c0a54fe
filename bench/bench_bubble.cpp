// SPDX-License-Identifier: Apache-2.0
// The idle time of each pipeline schedule, measured: 4 stages as thread ranks, 8 micro-batches, layers that sleep for a
// fixed time in each pass, against the schedule's own timeline. A table on standard output; one JSON object a line in
// the file given with --json.
//
//   bench_bubble [--milliseconds M] [--json FILE]
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>

#include <zeropp/zero.hpp>

using namespace zeropp;

namespace {

using Clock = std::chrono::steady_clock;

/// Sleeps, and waits for the last moment awake: sleeping alone takes up to 0.2 ms too long.
void sleep(double seconds) {
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::this_thread::sleep_until(until - std::chrono::microseconds(200));
  while (Clock::now() < until) std::this_thread::yield();
}

/// Hands on what it gets, after a while.
struct Sleeping {
  static constexpr bool splits_backward = true;
  Parameter gain;
  PassTimes times;

  auto parameters() { return std::array{&gain}; }
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    sleep(times.forward);
    return Forward{std::move(x), None{}};
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, None) {
    sleep(times.backward_input);
    ctx.weight_gradients([this](auto&) { sleep(times.backward_weight); });
    return dy;
  }
};

constexpr int stages = 4, micro_batches = 8, blocks = 8, width = 8, vocabulary = 16;

struct Model : Sequential<GptEmbedding, Repeat<Sleeping>, LmHead> {
  explicit Model(const PassTimes& times)
      : Sequential{GptEmbedding{{.vocabulary = vocabulary, .width = width}}, {}, LmHead{"lm_head", vocabulary, width}} {
    for (int i = 0; i < blocks; ++i)
      std::get<1>(children).children.push_back({{.name = text("h.", i, ".gain"), .shape = {4096}}, times});
  }
};

/// Seconds of one step, the second of two.
double seconds_of_step(PipelineKind kind, int chunks, const PassTimes& times) {
  double seconds = 0;
  run_ranks(stages, {}, [&](Comm comm) {
    Cpu device;
    PipelineStage<Model> stage{{.comm = comm, .schedule = kind, .chunks = chunks, .width = width}, Model{times}};
    Sharded<PipelineStage<Model>, Stage::none> model{Mesh{comm, {.pipeline = stages}}, device, std::move(stage)};
    auto batch = Batch::on(device, micro_batches, 4);
    std::fill_n(batch.tokens.data(), batch.tokens.size(), 1);
    std::fill_n(batch.labels.data(), batch.labels.size(), 1);
    for (int step = 0; step < 2; ++step) {
      comm.barrier();
      const auto begin = Clock::now();
      model.train(batch, {.micro_batches = micro_batches});
      comm.barrier();
      if (comm.rank() == 0) seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
  });
  return seconds;
}

struct Case {
  const char* name;
  PipelineKind kind;
  int chunks;
};

}  // namespace

int main(int argc, char** argv) {
  double unit = 40e-3;
  std::string json;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--milliseconds")
      unit = std::atof(argv[i + 1]) * 1e-3;
    else if (flag == "--json")
      json = argv[i + 1];
    else
      return std::fprintf(stderr, "bench_bubble: unknown option %s\n", flag.c_str()), 2;
  }
  if (!(unit > 0)) return std::fprintf(stderr, "bench_bubble: --milliseconds must be above 0\n"), 2;
  std::ofstream out;
  if (!json.empty()) out.open(json);
  const PassTimes of_block{unit, unit, unit};
  std::printf("%d stages, %d micro-batches, passes of %.0f ms a block and %d blocks\n", stages, micro_batches,
              unit * 1e3, blocks);
  std::printf("%-14s %12s %12s %10s %10s %10s\n", "schedule", "timeline s", "measured s", "ratio", "bubble",
              "measured");
  for (auto [name, kind, chunks] : {Case{"gpipe", PipelineKind::gpipe, 1},
                                    {"1f1b", PipelineKind::one_forward_one_backward, 1},
                                    {"interleaved", PipelineKind::interleaved, 2},
                                    {"zb-h1", PipelineKind::zb_h1, 1},
                                    {"zb-v", PipelineKind::zb_v, 2}}) {
    const double of_part = unit * blocks / stages / chunks;
    const auto line =
        PipelineTimeline::of(make_schedule(kind, stages, micro_batches, chunks), {of_part, of_part, of_part});
    const double seconds = seconds_of_step(kind, chunks, of_block), busy = 3 * unit * blocks / stages * micro_batches;
    const double bubble = 1 - busy / seconds;
    std::printf("%-14s %12.4f %12.4f %10.4f %10.4f %10.4f\n", name, line.end, seconds, seconds / line.end,
                line.bubble(), bubble);
    if (out.is_open())
      out << "{\"schedule\": \"" << name << "\", \"stages\": " << stages << ", \"micro_batches\": " << micro_batches
          << ", \"unit_seconds\": " << unit << ", \"timeline_seconds\": " << line.end
          << ", \"measured_seconds\": " << seconds << ", \"timeline_bubble\": " << line.bubble()
          << ", \"measured_bubble\": " << bubble << "}\n";
  }
}
