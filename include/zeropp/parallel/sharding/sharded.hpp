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
#include <optional>
#include <span>
#include <utility>

#include <zeropp/device/cpu.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/parallel/sharding/agree.hpp>
#include <zeropp/parallel/sharding/gradient_sums.hpp>
#include <zeropp/parallel/sharding/loss_over_ranks.hpp>
#include <zeropp/parallel/pipeline/pipeline_run.hpp>
#include <zeropp/parallel/sharding/sharded_state.hpp>
#include <zeropp/parallel/sharding/step_graph.hpp>

namespace zeropp {

namespace detail {
/// Has what all Sharded have.
template <class L>
inline constexpr bool is_sharded = requires(L& l) {
  l.publish_weights();
};
}  // namespace detail

template <class L, Stage S, Precision P = Fp32, Device D = Cpu>
class Sharded : public ShardedState<P, D> {
  static_assert(!detail::is_sharded<L>, "Sharded<Sharded<L>>: state is partitioned once; write Sharded<L, Stage>");
  static_assert(detail::is_layer<L> || detail::is_sharded<L>,
                "Sharded<L, Stage>: L is not a layer. A layer declares parameters(), or holds layers; see "
                "docs/own_layer.md");
  using Base = ShardedState<P, D>;

 public:
  using Context = zeropp::Context<D, P>;
  static constexpr bool around_model = true;
  using Model = L;
  using Base::step, Base::guarded, Base::recorder, Base::local_batch, Base::finish_gradients;

  /// Takes memory for the rank's part of the state and draws the first weights. `comms` is a Comm of data ranks, or a
  /// Mesh: the state is partitioned over its data and context axes; layers under TensorParallel or PipelineStage were
  /// built with its other axes; context ranks share sequences, and give the same batch each. A collective: ranks whose
  /// models differ are refused. Throws ConfigError, MemoryError, CommError.
  Sharded(const ModelComms& comms, D& device, L layer, ShardedOptions options = {})
      : Base(comms, device, S, options), layer_(std::move(layer)) {
    agree();
    if (prefetch() < 0) throw ConfigError(text("prefetch counts units, got ", prefetch()));
    if constexpr (Pipelined<L>)
      this->find_units(layer_, layer_.model_parameters(), layer_.parameters_in_model());
    else
      this->find_units(layer_, parameters_of(layer_), 0);
  }

  L& layer() { return layer_; }
  bool captured() const { return graph_.captured(); }  ///< whether steps run as a graph now: ShardedOptions::graph

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
      return guarded(text("train ", whole.rows(), "x", whole.sequence(), "/", options.micro_batches),
                     [&] { return passes(whole, options); });
    });
  }

  /// The loss of a batch over all ranks, without gradients. A collective.
  Loss evaluate(const Batch& whole) {
    return guarded(text("evaluate ", whole.rows(), "x", whole.sequence()), [&] {
      const auto batch = local_batch(whole);
      Context ctx(device_, run_state(batch, Mode::evaluation));
      if constexpr (Pipelined<L>)
        return over_ranks(PipelineRun(*this, layer_, layer_.layout(), {batch, ctx, 1}).evaluate());
      else
        return over_ranks(forward(ctx, batch.tokens).output);
    });
  }

  /// The norm of the gradients, and the factor that clips them: see clip_by_global_norm. A collective.
  ClipResult clip_gradients(float max_norm) {
    if (!(max_norm >= 0))
      throw ConfigError(text("the gradients' norm is clipped to a value of at least 0, got ", max_norm));
    return over_gradients(
        *this, [&](auto parts, auto places, auto sums) { kernels::sums_of_squares(device_, parts, places, sums); },
        [&](auto squares) {
          return kernels::gradient_norm(device_, squares, static_cast<double>(loss_scale_), static_cast<double>(max_norm));
        });
  }

  /// Logits of some rows of `tokens` [B, T] (row b·T + t): out is [rows, vocabulary]. A collective.
  void logits(const Tensor<std::int32_t, 2>& tokens, std::span<const std::int64_t> rows, std::span<float> out) {
    SharedLogits shared(context_, tokens.shape(), rows, out);
    auto& request = shared.request();
    guarded(text("logits ", tokens.extent(0), "x", tokens.extent(1), " ", request.rows.size()), [&] {
      const auto batch = local_batch({.tokens = tokens, .labels = {}});
      Context ctx(device_, run_state(batch, Mode::evaluation));
      ctx.logits = &request;
      if constexpr (Pipelined<L>)
        PipelineRun(*this, layer_, layer_.layout(), {batch, ctx, 1}).evaluate();
      else
        forward(ctx, batch.tokens);
      return 0;
    });
    shared.collect();
    if constexpr (Pipelined<L>) pipeline_.host().broadcast(out, layer_.last_stage());
  }

  // ---- for a loop of your own: context, forward, backward, then finish_gradients() before the optimizer's step

  /// A context of this model's seed and step; give first_sample, labels and loss_weight where layers need them.
  Context context(RunState run = {}) {
    run.seed = options_.seed, run.step = step(), run.context_shard = context_;
    return Context(device_, std::move(run));
  }

  template <class X>
  auto forward(Context& ctx, X x) {
    const Recording span(recorder(), SpanKind::forward, micro_batch_);
    return forward_of(layer_, ctx, std::move(x));
  }
  /// Backward of one micro-batch: adds its gradients to those of the step, or begins with them (begin_micro_batch).
  template <class Dy, class Saved>
  auto backward(Context& ctx, Dy dy, Saved saved) {
    const Recording span(recorder(), SpanKind::backward, micro_batch_);
    return backward_of(layer_, ctx, std::move(dy), std::move(saved));
  }
  /// The same for a part of the model: a chunk of a pipeline.
  template <class Part, class X>
  auto forward_of(Part& part, Context& ctx, X x) {
    auto lifecycle = lifecycle_of_pass();
    ShardedContext<D, P> context(ctx, lifecycle);
    return context.forward(part, std::move(x));
  }
  /// With `later`, work for gradients of weights may wait there for weight_gradients_of.
  template <class Part, class Dy, class Saved>
  auto backward_of(Part& part, Context& ctx, Dy dy, Saved saved, WeightWork<D, P>* later = nullptr) {
    auto lifecycle = lifecycle_of_pass();
    ShardedContext<D, P> context(ctx, lifecycle, later);
    auto dx = context.backward(part, std::move(dy), std::move(saved));
    end_backward();
    return dx;
  }
  void run_weight_work(Context& ctx, WeightWork<D, P> left) {
    auto lifecycle = lifecycle_of_pass();
    ShardedContext<D, P>(ctx, lifecycle).run_weight_work(std::move(left));
    end_backward();
  }
  /// Says which micro-batch of the step comes next; without it each backward is a step of its own.
  void begin_micro_batch(bool first, bool last) {
    micro_batch_ = first ? 0 : micro_batch_ + 1;
    first_micro_batch_ = first;
    last_micro_batch_ = last;
  }

 private:
  /// What a training step runs before the optimizer.
  Loss passes(const Batch& whole, const TrainOptions& options) {
    const auto batch = local_batch(whole);
    auto run = run_state(batch, Mode::training);
    const auto labels = batch.labels_in_step ? batch.labels_in_step
                        : batch.labels_here >= 0
                            ? comm_.sum(batch.labels_here)
                            : comm_.sum(kernels::count_labels(device_, std::span{batch.labels.span()}));
    run.loss_weight = labels ? static_cast<double>(options.loss_scale) / static_cast<double>(labels) : 0.0;
    const MicroBatches micro_batches{batch, run, options.micro_batches};
    Loss total;
    total.add(0, 0);
    if constexpr (Pipelined<L>) {
      PipelineRun(*this, layer_, layer_.schedule(options.micro_batches), micro_batches).train(total);
    } else {
      for (std::int64_t m = 0; m < options.micro_batches; ++m) {
        Context ctx(device_, micro_batches.run(m));
        begin_micro_batch(m == 0, m + 1 == options.micro_batches);
        auto out = forward(ctx, micro_batches.tokens(m));
        backward(ctx, 1.0f, std::move(out.saved));
        total.add(out.output);
      }
    }
    finish_gradients(options.loss_scale);
    return over_ranks(total);
  }
  /// The next micro-batch needs the units' buffers; after the last one sums may go on beside other stages.
  void end_backward() { last_micro_batch_ ? reducer_.start() : reducer_.flush(); }
  int prefetch() const { return options_.prefetch.value_or(comm_.overlaps() ? 2 : 0); }
  SiteLifecycle<P, D> lifecycle_of_pass() {
    return {units_, reducer_, options_.reduction, prefetch(), first_micro_batch_, last_micro_batch_, recorder()};
  }
  RunState run_state(const Batch& batch, Mode mode) {
    return {.mode = mode,
            .seed = options_.seed,
            .step = step(),
            .first_sample = batch.first_sample,
            .labels = batch.labels,
            .draws = graph_.draws(),
            .context_shard = context_};
  }
  Loss over_ranks(const Loss& mine) {
    return detail::loss_over_ranks(mine, comm_, pipeline_, detail::last_stage(layer_));
  }

  void agree() {
    if (context_.size() > 1) detail::check_context(layer_, context_);
    detail::agree(
        layer_, comm_, tensor_, pipeline_,
        text("stage ", static_cast<int>(S), " ", P::name, " ", options_.words(), " prefetch ", prefetch(), "\n"));
  }

  using Base::comm_, Base::device_, Base::loss_scale_, Base::options_, Base::context_, Base::pipeline_, Base::reducer_,
      Base::steps_, Base::tensor_, Base::units_, Base::world_;
  L layer_;
  StepGraph<D> graph_;
  std::int64_t micro_batch_ = 0;
  bool first_micro_batch_ = true, last_micro_batch_ = true;
};

}  // namespace zeropp
