// SPDX-License-Identifier: Apache-2.0
// The engine of `Sharded`: the passes of a model whose training state is partitioned, for a stage that is a value. So
// it compiles once for all stages; `Sharded<L, Stage>` only says which.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/device/cpu.hpp>
#include <zeropp/kernels/cross_entropy.hpp>
#include <zeropp/parallel/context/check_context.hpp>
#include <zeropp/parallel/context/shared_logits.hpp>
#include <zeropp/parallel/sharding/agree.hpp>
#include <zeropp/parallel/sharding/loss_over_ranks.hpp>
#include <zeropp/parallel/sharding/runner.hpp>
#include <zeropp/parallel/sharding/sharded_context.hpp>
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

template <class L, Precision P = Fp32, Device D = Cpu>
class ShardedEngine : public ShardedState<P, D> {
  static_assert(!detail::is_sharded<L>, "Sharded<Sharded<L>>: state is partitioned once; write Sharded<L, Stage>");
  static_assert(detail::is_layer<L> || detail::is_sharded<L>,
                "Sharded<L, Stage>: L is not a layer. A layer declares parameters(), or holds layers; see "
                "docs/own_layer.md");
  using Base = ShardedState<P, D>;

 public:
  using Context = zeropp::Context<D, P>;
  static constexpr LayerTraits traits{.around_model = true};
  using Model = L;
  using Base::step, Base::guarded, Base::recorder, Base::local_batch, Base::finish_gradients;

  /// See Sharded.
  ShardedEngine(const ModelComms& comms, D& on, L layer, Stage stage, ShardedOptions options = {})
      : Base(comms, on, stage, options), layer_(std::move(layer)) {
    if (prefetch() < 0) throw ConfigError(text("prefetch counts units, got ", prefetch()));
    std::vector<Parameter*> parameters;
    std::vector<std::string> of_layers;
    visit_parameters(layer_, [&](Parameter& p) { parameters.push_back(&p); });
    visit_settings(layer_, [&](const std::string& settings) { of_layers.push_back(settings); });
    detail::expect_tensor_ranks(parameters, comms.tensor);
    detail::expect_pipeline_ranks(Runner<L>::stages(layer_), comms.pipeline);
    if (context_.size() > 1) detail::check_context(layer_, context_);
    auto whole = Runner<L>::model_parameters(layer_);
    auto settings = this->settings();
    settings.push_back({"prefetch", text(prefetch())});
    detail::expect_same_model(parameters, of_layers, comms, whole, settings);
    this->find_units(layer_, std::move(whole), Runner<L>::parameters_in_order(layer_));
  }

  L& layer() { return layer_; }
  bool captured() const { return graph_.captured(); }  ///< whether steps run as a graph now: ShardedOptions::graph
  std::string describe() { return Runner<L>::describe(layer_); }  ///< which part of the model this rank has

  /// Forward and backward of the rank's part of a batch in `micro_batches` passes; gradients are summed over ranks.
  /// Returns the loss over all ranks. A collective.
  Loss train(const Batch& whole, TrainOptions options = {}) {
    options.check();
    this->begin_step(options.loss_scale);
    const bool alone = options_.graph && world_.size() == 1 && !recorder();
    auto loss = graph_.run(device_, alone ? StepKey::of(whole, options) : std::nullopt, [&] {
      return guarded(text("train ", whole.rows(), "x", whole.sequence(), "/", options.micro_batches),
                     [&] { return passes(whole, options); });
    });
    this->gradients_are(Base::Gradients::finished);  // a graph repeats the kernels alone
    return loss;
  }

  /// The loss of a batch over all ranks, without gradients. A collective.
  Loss evaluate(const Batch& whole) {
    return guarded(text("evaluate ", whole.rows(), "x", whole.sequence()), [&] {
      const auto batch = local_batch(whole);
      return over_ranks(Runner<L>::evaluate(*this, layer_, {batch, run_state(batch, Mode::evaluation), 1}));
    });
  }

  /// Logits of some rows of `tokens` [B, T] (row b·T + t): out is [rows, vocabulary]. A collective.
  void logits(const Tensor<std::int32_t, 2>& tokens, std::span<const std::int64_t> rows, std::span<float> out) {
    SharedLogits shared(context_, tokens.shape(), rows, out);
    auto& request = shared.request();
    guarded(text("logits ", tokens.extent(0), "x", tokens.extent(1), " ", request.rows.size()), [&] {
      const auto batch = local_batch({.tokens = tokens, .labels = {}});
      auto run = run_state(batch, Mode::evaluation);
      run.logits = &request;
      Runner<L>::evaluate(*this, layer_, {batch, std::move(run), 1});
      return 0;
    });
    shared.collect();
    if (pipeline_.size() > 1) pipeline_.host().broadcast(out, Runner<L>::last_stage(layer_));
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
  /// Throws Error at the second backward of a step without begin_micro_batch.
  template <class Dy, class Saved>
  auto backward(Context& ctx, Dy dy, Saved saved) {
    if (!std::exchange(micro_batch_begun_, false)) {
      if (this->gradients() == Base::Gradients::unfinished)
        throw Error("a second backward of a step would discard the first one's gradients: call "
                    "model.begin_micro_batch(first, last) before each micro-batch, or finish_gradients() after each step");
      first_micro_batch_ = last_micro_batch_ = true;
    }
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
  /// With `later`, work for gradients of weights may wait there for run_weight_work.
  template <class Part, class Dy, class Saved>
  auto backward_of(Part& part, Context& ctx, Dy dy, Saved saved, WeightWork<D, P>* later = nullptr) {
    this->gradients_are(Base::Gradients::unfinished);
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
    micro_batch_begun_ = true;
    first_micro_batch_ = first;
    last_micro_batch_ = last;
  }

 private:
  /// The passes of a training step, up to the optimizer.
  Loss passes(const Batch& whole, const TrainOptions& options) {
    const auto batch = local_batch(whole);
    auto run = run_state(batch, Mode::training);
    const auto labels = batch.labels_in_step ? batch.labels_in_step
                        : batch.labels_here >= 0
                            ? comm_.sum(batch.labels_here)
                            : comm_.sum(kernels::count_labels(device_, std::span{batch.labels.span()}));
    this->labels_ = labels;
    run.loss_weight = labels ? static_cast<double>(options.loss_scale) / static_cast<double>(labels) : 0.0;
    Loss total;
    total.add(0, 0);
    Runner<L>::train(*this, layer_, MicroBatches{batch, std::move(run), options.micro_batches}, total);
    micro_batch_begun_ = false;
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
    return detail::loss_over_ranks(mine, comm_, pipeline_, Runner<L>::last_stage(layer_));
  }

  using Base::comm_, Base::context_, Base::device_, Base::options_, Base::pipeline_, Base::reducer_, Base::units_,
      Base::world_;
  L layer_;
  StepGraph<D> graph_;
  std::int64_t micro_batch_ = 0;
  bool first_micro_batch_ = true, last_micro_batch_ = true, micro_batch_begun_ = false;
};

}  // namespace zeropp
