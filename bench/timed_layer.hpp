// SPDX-License-Identifier: Apache-2.0
// A layer whose passes take a known time: it sleeps on a real device; a simulated one adds the time to its clock.
#pragma once

#include <array>
#include <chrono>
#include <thread>

#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/parallel/pipeline/instructions.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/pipeline/schedule.hpp>
#include <zeropp/train/simulate/simulate.hpp>

namespace bench {

using namespace zeropp;

/// Hands on what it gets, after a while.
struct Timed {
  static constexpr LayerTraits traits{.splits_backward = true};
  Parameter gain;
  PassTimes times;

  auto parameters() { return std::array{&gain}; }
  template <class C, class T>
  auto forward(C& ctx, Tensor<T, 3> x) {
    run(ctx, times.forward);
    return Forward{std::move(x), None{}};
  }
  template <class C, class T>
  auto backward(C& ctx, Tensor<T, 3> dy, None) {
    run(ctx, times.backward_input);
    ctx.weight_gradients([this](auto& later) { run(later, times.backward_weight); });
    return dy;
  }

  /// Only these layers take time: seconds in the place of flops.
  static double time_of(const Cost& cost) { return cost.name == "timed" ? cost.flops : 0; }

 private:
  template <class C>
  static void run(C& ctx, double seconds) {
    ctx.device.run({.name = "timed", .flops = seconds}, [seconds](auto&) { sleep(seconds); });
  }
  /// Waits for the last moment awake: sleeping alone takes up to 0.2 ms too long.
  static void sleep(double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto until =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    std::this_thread::sleep_until(until - std::chrono::microseconds(200));
    while (Clock::now() < until) std::this_thread::yield();
  }
};

/// Timed layers between an embedding and a head that are next to nothing.
struct TimedModel : Sequential<GptEmbedding, Repeat<Timed>, LmHead> {
  static constexpr int width = 8, vocabulary = 16;

  TimedModel(int blocks, const PassTimes& times)
      : Sequential{GptEmbedding{{.vocabulary = vocabulary, .width = width}}, {}, LmHead{"lm_head", vocabulary, width}} {
    for (int i = 0; i < blocks; ++i)
      std::get<1>(children).children.push_back({{.name = text("h.", i, ".gain"), .shape = {4096}}, times});
  }

  /// The part of a pipeline's rank.
  static PipelineStage<TimedModel> stage(const Comm& pipeline, PipelineKind kind, int chunks, int blocks,
                                         const PassTimes& times) {
    return {{.comm = pipeline, .schedule = kind, .chunks = chunks, .width = width}, TimedModel{blocks, times}};
  }
};

/// A step of it on a simulated pipeline with these links between stages. Activations are a few bytes: a link's latency
/// is all that they take.
inline SimulatedStep timed_step(PipelineKind kind, int stages, std::int64_t micro_batches, int chunks, int blocks,
                                const PassTimes& times, double latency = 0, Trace* trace = nullptr) {
  const Link link{1e30, latency};
  const Simulation simulation{.kernels = Timed::time_of,
                              .links = {.node = link, .network = link},
                              .ranks = stages,
                              .mesh = {.pipeline = stages},
                              .rows = micro_batches,
                              .sequence = 4,
                              .micro_batches = micro_batches,
                              .stage = Stage::none};
  return simulate<Fp32>(
      simulation, [&](const Mesh& mesh) { return TimedModel::stage(mesh.pipeline(), kind, chunks, blocks, times); },
      trace);
}

}  // namespace bench
