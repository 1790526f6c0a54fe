// SPDX-License-Identifier: Apache-2.0
// `Sharded<L, Stage>`: a model whose training state is partitioned over the ranks of a communicator. It owns weights
// and gradients; FusedAdam adds the optimizer's states.
//
//   Sharded<Gpt, Stage::gradients> model{comm, device, Gpt{config}};
//   FusedAdam adam{model, {.weight_decay = 0.1f}};
//   Loss loss = model.train(batch, {.micro_batches = 4});
//   adam.step(rate, clip_by_global_norm(model, 1.0f));
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/on_device.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/layers/loss.hpp>
#include <zeropp/parallel/agree.hpp>
#include <zeropp/parallel/batch.hpp>
#include <zeropp/parallel/context_parallel.hpp>
#include <zeropp/parallel/loss_over_ranks.hpp>
#include <zeropp/parallel/model_comms.hpp>
#include <zeropp/parallel/model_parameters.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/sharded_options.hpp>
#include <zeropp/parallel/step_count.hpp>
#include <zeropp/parallel/step_graph.hpp>

namespace zeropp {

template <class L, Stage S, Precision P = Fp32, Device D = Cpu>
class Sharded {
  static_assert(
      !requires { L::stage; }, "Sharded<Sharded<L>>: state is partitioned once; write Sharded<L, Stage>");
  static_assert(
      detail::is_layer<L> || requires { L::stage; },
      "Sharded<L, Stage>: L is not a layer. A layer declares parameters(), or holds layers; see docs/own_layer.md");

 public:
  using Device = D;
  using Precision = P;
  using Context = zeropp::Context<D, P>;
  using Gradient = typename P::Gradient;
  static constexpr Stage stage = S;
  static constexpr bool around_model = true;
  using Model = L;

  /// Takes memory for the rank's part of the state and draws the first weights. `comms` is a Comm of data ranks, or a
  /// Mesh: the state is partitioned over its data and context axes; layers under TensorParallel or PipelineStage were
  /// built with its other axes; context ranks share sequences, and give the same batch each. A collective: ranks whose
  /// models differ are refused. Throws ConfigError, MemoryError, CommError.
  Sharded(const ModelComms& comms, D& device, L layer, ShardedOptions options = {})
      : world_(comms.world),
        comm_(on_device(comms.sharding, device)),
        tensor_(on_device(comms.tensor, device)),
        pipeline_(on_device(comms.pipeline, device)),
        part_(on_device(comms.context, device), options.context_attention),
        device_(device),
        options_(options),
        layer_(std::move(layer)),
        units_((agree(), layer_), comm_, device, S),
        reducer_(comm_, {.bucket_bytes = options.bucket_bytes}) {
    if (prefetch() < 0) throw ConfigError(text("prefetch counts units, got ", prefetch()));
    units_.initialise(options.seed, pipeline_);
  }
  Sharded(const Sharded&) = delete;
  Sharded& operator=(const Sharded&) = delete;

  L& layer() { return layer_; }
  const Comm& comm() const { return comm_; }  ///< the ranks that the state is partitioned over
  ModelComms comms() const { return {world_, comm_, tensor_, pipeline_, part_.comm()}; }
  D& device() { return device_; }
  Recorder* recorder() const { return world_.recorder(); }  ///< of its passes: its ranks' communicator's; or null
  const ShardedOptions& options() const { return options_; }
  bool captured() const { return graph_.captured(); }  ///< whether steps run as a graph now: ShardedOptions::graph
  const ContextPart& part() const { return part_; }    ///< of every sequence that is on this rank
  std::deque<Unit<P, D>>& units() { return units_.all(); }
  /// Parameters by name, tied ones left out.
  const std::map<std::string, Parameter*, std::less<>>& parameters_by_name() const { return units_.by_name(); }
  /// The parameters of the whole model over all ranks, in the order of its forward; tied ones are left out.
  std::vector<ModelParameter> model_parameters() {
    if constexpr (Pipelined<L>)
      return layer_.model_parameters();
    else
      return parameters_of(layer_);
  }
  std::int64_t parameters() { return count_of(model_parameters()); }  ///< the Ψ of the ZeRO paper

  /// Optimizer steps done: enters dropout and schedules. Waits for the norm of the last one.
  std::int64_t step() const { return steps_.done(); }
  void set_step(std::int64_t step) { steps_.set(step); }
  /// An optimizer's step was enqueued, which counts if `clip` is finite.
  void add_step(const ClipResult& clip) { steps_.add(clip); }

  /// Forward and backward of the rank's part of a batch in `micro_batches` passes; gradients are summed over ranks.
  /// Returns the loss over all ranks. A collective.
  Loss train(const Batch& whole, TrainOptions options = {}) {
    if (options.micro_batches < 1)
      throw ConfigError(text("micro_batches must be at least 1, got ", options.micro_batches));
    if (!(options.loss_scale > 0)) throw ConfigError(text("loss_scale must be positive, got ", options.loss_scale));
    loss_scale_ = options.loss_scale;
    steps_.done();  // waits for the last one's norm, where a capture may not
    const bool alone = options_.graph && world_.size() == 1 && !recorder();
    return graph_.run(device_, alone ? StepKey::of(whole, options) : std::nullopt, [&] {
      return guarded(text("train ", whole.rows(), "x", whole.context(), "/", options.micro_batches),
                     [&] { return passes(whole, options); });
    });
  }

  /// The loss of a batch over all ranks, without gradients. A collective.
  Loss evaluate(const Batch& whole) {
    return guarded(text("evaluate ", whole.rows(), "x", whole.context()), [&] {
      const auto batch = part_of(whole);
      Context context(device_, run_state(batch, Mode::evaluation));
      if constexpr (Pipelined<L>)
        return over_ranks(PipelineRun(*this, layer_, layer_.layout(), {batch, context, 1}).evaluate());
      else
        return over_ranks(forward(context, batch.tokens).output);
    });
  }

  /// Logits of some rows of `tokens` [B, T] (row b·T + t): out is [rows, vocabulary]. A collective.
  void logits(const Tensor<std::int32_t, 2>& tokens, std::span<const std::int64_t> rows, std::span<float> out) {
    SharedLogits shared(part_, tokens.shape(), rows, out);
    auto& request = shared.request();
    guarded(text("logits ", tokens.extent(0), "x", tokens.extent(1), " ", request.rows.size()), [&] {
      const auto batch = part_of({.tokens = tokens, .labels = {}});
      Context context(device_, run_state(batch, Mode::evaluation));
      context.logits = &request;
      if constexpr (Pipelined<L>)
        PipelineRun(*this, layer_, layer_.layout(), {batch, context, 1}).evaluate();
      else
        forward(context, batch.tokens);
      return 0;
    });
    shared.collect();
    if constexpr (Pipelined<L>) pipeline_.host().broadcast(out, layer_.last_stage());
  }

  // ---- for a loop of your own: context, forward, backward, then finish_gradients() before the optimizer's step

  /// A context of this model's seed and step; give first_sample, labels and loss_scale where layers need them.
  Context context(RunState run = {}) {
    run.seed = options_.seed, run.step = step(), run.part = part_;
    return Context(device_, std::move(run));
  }

  /// This rank's positions of a batch: what forward takes where context ranks share sequences.
  Batch part_of(const Batch& whole) { return zeropp::part_of(device_, whole, part_); }

  template <class X>
  auto forward(Context& context, X x) {
    const Recording span(recorder(), SpanKind::forward, micro_batch_);
    return forward_of(layer_, context, std::move(x));
  }
  /// Backward of one micro-batch: adds its gradients to those of the step, or begins with them (begin_micro_batch).
  template <class Dy, class Saved>
  auto backward(Context& context, Dy dy, Saved saved) {
    const Recording span(recorder(), SpanKind::backward, micro_batch_);
    return backward_of(layer_, context, std::move(dy), std::move(saved));
  }
  /// The same for a part of the model: a chunk of a pipeline.
  template <class Part, class X>
  auto forward_of(Part& part, Context& context, X x) {
    auto residents = resident();
    Residency<D, P> residency(context, residents);
    return residency.forward(part, std::move(x));
  }
  /// With `later`, work for gradients of weights may wait there for weight_gradients_of.
  template <class Part, class Dy, class Saved>
  auto backward_of(Part& part, Context& context, Dy dy, Saved saved, WeightWork<D, P>* later = nullptr) {
    auto residents = resident();
    Residency<D, P> residency(context, residents, later);
    auto dx = residency.backward(part, std::move(dy), std::move(saved));
    end_backward();
    return dx;
  }
  void weight_gradients_of(Context& context, WeightWork<D, P> left) {
    auto residents = resident();
    Residency<D, P>(context, residents).weight_gradients(std::move(left));
    end_backward();
  }
  /// Says which micro-batch of the step comes next; without it each backward is a step of its own.
  void begin_micro_batch(bool first, bool last) {
    micro_batch_ = first ? 0 : micro_batch_ + 1;
    first_micro_batch_ = first;
    last_micro_batch_ = last;
  }
  /// After the last micro-batch: gradients over update() of all units are then sums over ranks, of a loss multiplied by
  /// `loss_scale`. A collective.
  void finish_gradients(float loss_scale = 1) {
    loss_scale_ = loss_scale;
    reducer_.flush();
    units_.join_ties(pipeline_);
    if (tensor_.size() > 1) units_.sum_over_tensor(tensor_);
    if constexpr (S == Stage::none) units_.gradients_due();
  }
  float loss_scale() const { return loss_scale_; }  ///< what the gradients of the last pass are multiplied by
  /// Sends what of them other ranks need, a unit after the other: before an optimizer reads them. A collective.
  void publish_gradients() {
    for (auto& unit : units()) unit.publish_gradients();
  }
  /// To be called when the weights over update() have changed on every rank. A collective.
  void publish_weights() {
    for (std::size_t i = 0; i < units().size(); ++i) publish_unit(i);
    publish_others();
  }
  /// The same in parts: of a unit that has changed, which on GPUs is sent while others do; and in the end the rest.
  void publish_unit(std::size_t i) { units_.publish_unit(i); }
  void publish_others() { units_.publish_others(pipeline_); }

  /// Runs `body` as a program of the pool; after an exception nothing stays gathered or half reduced.
  template <class Body>
  auto guarded(const std::string& name, Body body) {
    try {
      Pool::Program program(device_.pool(), name);
      if (device_.pool().recording()) units_.settle();  // what records gives memory back: see NcclBackend::collective
      auto result = body();
      program.finish();
      return result;
    } catch (...) {
      reducer_.drop();
      units_.abandon();
      throw;
    }
  }

 private:
  /// What a training step runs before the optimizer.
  Loss passes(const Batch& whole, const TrainOptions& options) {
    const auto batch = part_of(whole);
    auto run = run_state(batch, Mode::training);
    const auto labels = batch.labels_in_step ? batch.labels_in_step
                        : batch.labels_here >= 0
                            ? comm_.sum(batch.labels_here)
                            : comm_.sum(kernels::count_labels(device_, std::span{batch.labels.span()}));
    run.loss_scale = labels ? static_cast<double>(options.loss_scale) / static_cast<double>(labels) : 0.0;
    const MicroBatches micro_batches{batch, run, options.micro_batches};
    Loss total;
    total.add(0, 0);
    if constexpr (Pipelined<L>) {
      PipelineRun(*this, layer_, layer_.schedule(options.micro_batches), micro_batches).train(total);
    } else {
      for (std::int64_t m = 0; m < options.micro_batches; ++m) {
        Context context(device_, micro_batches.run(m));
        begin_micro_batch(m == 0, m + 1 == options.micro_batches);
        auto out = forward(context, micro_batches.tokens(m));
        backward(context, 1.0f, std::move(out.saved));
        total.add(out.output);
      }
    }
    finish_gradients(options.loss_scale);
    return over_ranks(total);
  }
  /// The next micro-batch needs the units' buffers; after the last one sums may go on beside other stages.
  void end_backward() { last_micro_batch_ ? reducer_.start() : reducer_.flush(); }
  int prefetch() const { return options_.prefetch.value_or(comm_.overlaps() ? 2 : 0); }
  Residents<P, D> resident() {
    return {units_, reducer_, options_.reduction, prefetch(), first_micro_batch_, last_micro_batch_, recorder()};
  }
  RunState run_state(const Batch& batch, Mode mode) {
    return {.mode = mode,
            .seed = options_.seed,
            .step = step(),
            .first_sample = batch.first_sample,
            .labels = batch.labels,
            .draws = graph_.draws(),
            .part = part_};
  }
  Loss over_ranks(const Loss& mine) {
    return detail::loss_over_ranks(mine, comm_, pipeline_, detail::last_stage(layer_));
  }

  void agree() {
    if (part_.size() > 1) detail::check_context(layer_, part_);
    detail::agree(
        layer_, comm_, tensor_, pipeline_,
        text("stage ", static_cast<int>(S), " ", P::name, " ", options_.words(), " prefetch ", prefetch(), "\n"));
  }

  Comm world_, comm_, tensor_, pipeline_;
  ContextPart part_;
  D& device_;
  ShardedOptions options_;
  L layer_;
  Units<P, D> units_;
  BucketedReducer<Gradient> reducer_;
  StepCount steps_;
  StepGraph<D> graph_;
  std::int64_t micro_batch_ = 0;
  float loss_scale_ = 1;
  bool first_micro_batch_ = true, last_micro_batch_ = true;
};

}  // namespace zeropp
