// SPDX-License-Identifier: Apache-2.0
// The training loop of mini_gpt, on any device. A file for each precision and device instantiates it, so that they
// compile side by side.
#pragma once

#include <cmath>
#include <cstdio>
#include <fstream>
#include <future>

#include <zeropp/app/data/corpus.hpp>
#include <zeropp/app/data/evaluate.hpp>
#include <zeropp/app/interrupt.hpp>
#include <zeropp/app/log/console.hpp>
#include <zeropp/app/log/curve.hpp>
#include <zeropp/app/log/metrics.hpp>
#include <zeropp/app/log/monitors.hpp>
#include <zeropp/comm/world.hpp>
#include <zeropp/train/checkpoint/checkpoint.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/sampler.hpp>

#include "engine.hpp"
#include "record.hpp"

namespace mini_gpt {

using Data = std::shared_future<Corpus>;  // loaded by the first rank that asks, in a process

/// The ceiling with which a run is compared.
struct Ceiling {
  double products = 1;  ///< floating-point operations a second, all ranks together
  double memory = 0;    ///< bytes of a device
};

/// Calls f.template operator()<P>() for the precision of this name, one of those in the list.
template <class First, class... Rest, class F>
auto with_one_of(const std::string& name, F f) {
  if constexpr (sizeof...(Rest) > 0)
    if (name != First::name) return with_one_of<Rest...>(name, f);
  return f.template operator()<First>();
}
template <class F>
auto with_precision(const std::string& name, F f) {
  return with_one_of<Fp32, Bf16, Fp16>(name, f);
}

/// A gradient that is not finite is left out: other data may give a better one. So many in a row come of the weights.
inline constexpr int skipped_steps_in_a_row = 8;

template <class P, class D>
int train(const Settings& given, const World& world, const Data& data, D& device, const Ceiling& ceiling) {
  const Corpus& corpus = data.get();
  const auto s = fitted(given, corpus);
  const double started = steady_seconds();
  Console console{world.rank == 0};
  console.line(corpus.description);
  auto compared = s.compared();
  compared.push_back({"the checksum of the tokens", text(fingerprint_of(*corpus.split.training.source))});
  expect_same_settings(world.comm, compared);
  const Mesh mesh{world.comm, s.mesh(world.size)};
  const auto engine = build_engine<P, D>(s, mesh, device);
  auto& model = *engine.model;
  auto& adam = *engine.adam;
  LossScaler scaler{s.loss_scaling()};
  const auto warn = [&](const std::string& words) { console.line("WARNING: " + words); };
  Checkpoints store{world.comm, s.out + "/checkpoints", {.keep = s.keep, .naming = Naming::gpt2(), .warn = warn}};
  const auto failed = [&](ExitCode code, const std::string& words) {
    if (world.rank == 0) std::fprintf(stderr, "error: %s\n", words.c_str());
    return static_cast<int>(code);
  };
  const auto record = record_of(s, world.size, corpus);
  const auto beside = files_for_others(s, corpus);
  std::int64_t first = 0, cursor = 0;  // steps and samples that are done
  std::string saved;
  if (s.resume != "none")
    if (const auto found = store.resume(model.state(), adam, s.resume == "auto" ? "" : s.resume)) {
      first = found->step, saved = found->path;
      scaler.set_state(found->loss_scale);
      console.line(text("resumed after step ", first, " from ", found->path));
      cursor = found->cursor ? found->cursor : first * s.rows;
      expect_same_tokenizer(*found, corpus);
      for (auto& sentence : changes(found->config, record)) console.line(sentence);
      if (found->seed != s.seed) warn(text("the seed was ", found->seed, ", now ", s.seed, ": other data follow"));
    }

  if (first >= s.steps) {
    const auto words = text("nothing left to train: ", saved, " has done ", counted(first, "step"), ", --steps asks for ",
                            s.steps, "; give more --steps, or a new run another --out");
    if (first > s.steps) return failed(ExitCode::usage, words);
    return console.line(words), 0;  // this very run has ended before
  }
  if (!s.weights.empty() && saved.empty())
    load_weights(s.weights, model.state(), {.naming = Naming::gpt2(), .vocabulary = s.model.tokens});
  else if (!s.weights.empty())
    warn("--weights is for a run that begins; this one goes on from its checkpoint");

  const LoaderOptions options{s.rows, s.model.block_size, s.seed, mesh.data().rank(), mesh.data().size()};
  const TokenLoader loader{corpus.split.training, options};
  const EvaluationLoader held_out{corpus.split.validation, options};
  auto batch = Batch::on(device, s.rows_of(mesh.data()), s.model.block_size);
  MetricsFile metrics{world.rank == 0 ? s.out + "/metrics.jsonl" : "/dev/null", first, warn};
  const MonitorFolders folders{s.tensorboard, s.csv_monitor};
  Monitors monitors{world.rank == 0 ? folders : MonitorFolders{}, cursor, warn};
  Progress progress{console, first, s.steps, ceiling.memory, s.steps_per_print};
  const auto show_sample = [&] {
    if (!corpus.tokenizer || s.sample_tokens < 1) return;
    const auto vocabulary = s.model.tokens ? s.model.tokens : s.model.vocabulary;
    auto tokens = sample(model, {corpus.tokenizer->token_of_byte('\n')}, s.sample_tokens, s.model.block_size,
                         vocabulary, {.temperature = 0.8f, .top_k = 50, .seed = s.seed});
    std::erase_if(tokens, [&](auto token) { return token >= corpus.tokenizer->vocabulary(); });
    console.heading("sample:");
    console.line(corpus.tokenizer->decode(tokens));
  };
  std::string failure;  // ends the run and is the last word on stderr
  const auto save = [&](std::int64_t done) {
    if (!std::isfinite(model.evaluate(batch).mean())) {  // older checkpoints would make room for it
      failure = text("after step ", done, " the loss of the weights is not finite; they are not saved");
      return;
    }
    saved = store.save(model.state(), adam,
                       {.step = done,
                        .seed = s.seed,
                        .cursor = cursor,
                        .config = record,
                        .loss_scale = scaler.state(),
                        .files = beside});
  };
  const Interrupt interrupt{world.rank == 0};  // from here on there is something to save
  int signal = 0, skipped = 0;
  for (auto step = first; step < s.steps; ++step) {
    const double begin = steady_seconds();
    const float rate = s.rate(s.schedule ? adam.steps() : step);  // DeepSpeed's do not move in a step that is skipped
    fill(batch, loader.at_sample(cursor));
    cursor += s.rows;
    const auto loss =
        model.train(batch, {.micro_batches = s.micro_batches(mesh.data().size()), .loss_scale = scaler.scale()});
    const auto clip = clip_by_global_norm(model, s.grad_clip);
    const bool updated = adam.step(rate, clip);
    const double scale = scaler.adapts() ? scaler.scale() : 0;
    scaler.update(updated);
    if (!updated)
      console.line(text("step ", step + 1, ": the gradient is not finite",
                        scale > 0 ? text(" at the loss scale ", scale) : "", "; all ranks skip it"));
    skipped = updated || scaler.adapts() ? 0 : skipped + 1;
    if (skipped == skipped_steps_in_a_row)
      failure = text("the gradients of ", skipped, " steps in a row are not finite, from step ", step + 2 - skipped,
                     " on, at the same weights: nothing more can be learned");
    const double seconds = steady_seconds() - begin, speed = static_cast<double>(s.tokens()) / seconds;
    const auto done = step + 1;
    StepMetrics m{.step = done,
                  .loss = loss.mean(),
                  .grad_norm = clip.norm(),
                  .learning_rate = rate,
                  .milliseconds = 1e3 * seconds,
                  .tokens_per_second = speed,
                  .mfu = speed * s.model.flops_per_token(model.parameters()) / ceiling.products,
                  .bytes = static_cast<std::int64_t>(device.pool().allocated()),
                  .loss_scale = scale};
    if (step == first) console.line(text("first step after ", fixed(steady_seconds() - started, 2), " s"));
    if (done % s.eval_every == 0) m.validation_loss = evaluate(model, held_out, batch, 8).mean();
    if (world.rank == 0) metrics.write(m), monitors.write(m, cursor);
    progress.show(m);
    const bool last = done == s.steps;
    signal = Interrupt::signal(world.comm);
    if (failure.empty() && ((done % s.save_every == 0 && !skipped) || last || signal)) save(done);
    if (signal || !failure.empty()) break;
    if (s.sample_every && done % s.sample_every == 0 && !last) show_sample();
  }

  if (!signal && failure.empty()) {
    const auto loss = evaluate(model, held_out, batch, 0, [&] {
      signal = Interrupt::signal(world.comm);
      return signal != 0;
    });
    if (!signal && !std::isfinite(loss.mean())) failure = "the validation loss is not finite";
    if (!signal && failure.empty()) show_sample();
    if (!signal) console.heading(text("validation loss ", fixed(loss.mean(), 4), " nats a token"));
    if (corpus.held_out_bytes && !signal)  // the first held-out token is given, not predicted
      console.heading(text("validation bits per byte ",
                           fixed(loss.sum() / std::log(2.0) / static_cast<double>(corpus.held_out_bytes), 4), " over ",
                           grouped(corpus.held_out_bytes), " held-out bytes"));
  }
  if (world.rank == 0) {
    std::ofstream(s.out + "/loss.svg") << Curve::of_metrics(s.out + "/metrics.jsonl")
                                              .svg(text("mini_gpt: ", grouped(model.parameters()), " parameters, ",
                                                        mesh.describe(), ", ZeRO-", s.zero));
    if (!corpus.held_out.empty()) std::ofstream(s.out + "/heldout.txt") << corpus.held_out;
  }
  console.line(text("checkpoint  ", saved.empty() ? "none" : saved, "\nmetrics     ", s.out,
                    "/metrics.jsonl\ncurve       ", s.out, "/loss.svg"));
  if (failure.empty()) return signal ? Interrupt::exit_code(signal) : 0;
  return failed(ExitCode::failure,
                text(failure, ". Lower ", scaler.scale() == 1 ? "--lr or raise --warmup-steps" : "the loss scale",
                     saved.empty() ? "" : "; --resume auto goes on from the checkpoint"));
}

extern template int train<Fp32>(const Settings&, const World&, const Data&, Cpu&, const Ceiling&);
extern template int train<Bf16>(const Settings&, const World&, const Data&, Cpu&, const Ceiling&);
extern template int train<Fp16>(const Settings&, const World&, const Data&, Cpu&, const Ceiling&);

}  // namespace mini_gpt
