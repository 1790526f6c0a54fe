// SPDX-License-Identifier: Apache-2.0
// The part of a sharded model that is independent of its layers: communicators, units, and the order of communication.
// Optimizers and checkpoints use this base class; `ShardedEngine` adds the passes.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/comm/on_device.hpp>
#include <zeropp/kernels/reduce.hpp>
#include <zeropp/parallel/batch.hpp>
#include <zeropp/parallel/context/local_batch.hpp>
#include <zeropp/parallel/sharding/gradient_sums.hpp>
#include <zeropp/parallel/sharding/model_comms.hpp>
#include <zeropp/parallel/sharding/model_parameters.hpp>
#include <zeropp/parallel/sharding/sharded_options.hpp>
#include <zeropp/parallel/sharding/step_count.hpp>
#include <zeropp/parallel/sharding/units.hpp>

namespace zeropp {

template <Precision P, Device D>
class ShardedState {
 public:
  using Device = D;
  using Precision = P;
  using Gradient = typename P::Gradient;

  ShardedState(const ShardedState&) = delete;
  ShardedState& operator=(const ShardedState&) = delete;

  Stage stage() const { return stage_; }
  const Comm& comm() const { return comm_; }  ///< the ranks that the state is partitioned over
  ModelComms comms() const { return {world_, comm_, tensor_, pipeline_, context_.comm()}; }
  D& device() { return device_; }
  Recorder* recorder() const { return world_.recorder(); }  ///< of its passes: its ranks' communicator's; or null
  const ShardedOptions& options() const { return options_; }
  const ContextShard& context_shard() const { return context_; }  ///< of every sequence that is on this rank
  std::deque<Unit<P, D>>& units() { return units_.all(); }
  /// Parameters by name, tied ones left out.
  const std::map<std::string, Parameter*, std::less<>>& parameters_by_name() const { return units_.by_name(); }
  /// The parameters of the whole model over all ranks, in the order of its forward; tied ones are left out.
  const std::vector<ModelParameter>& model_parameters() const { return model_parameters_; }
  std::int64_t parameters() const { return count_of(model_parameters_); }  ///< the Ψ of the ZeRO paper
  /// The parameters of a model that a pipeline cuts with the tied ones, which Parameter::order counts; otherwise 0.
  int parameters_in_order() const { return parameters_in_order_; }

  /// Optimizer steps done: enters dropout and schedules. Waits for the norm of the last one.
  std::int64_t step() const { return steps_.done(); }
  void set_step(std::int64_t step) { steps_.set(step); }
  /// An optimizer's step was enqueued, which counts if `clip` is finite. The next norm shows whether all ranks have
  /// stepped at the same rate.
  void add_step(const ClipResult& clip, float learning_rate = 0) {
    steps_.add(clip);
    learning_rate_ = learning_rate;
    if (gradients_ == Gradients::finished) gradients_ = Gradients::used;
  }

  /// This rank's positions of a batch: what forward takes where context ranks share sequences.
  /// Context, tensor and pipeline ranks that were given other batches than each other are refused. A collective.
  Batch local_batch(const Batch& whole) {
    if (context_.size() > 1 || tensor_.size() > 1 || pipeline_.size() > 1) {
      const auto mine = detail::batch_numbers(device_, whole);
      detail::expect_same_batch(mine, context_.comm(), "context");
      detail::expect_same_batch(mine, tensor_, "tensor");
      detail::expect_same_batch(mine, pipeline_, "pipeline");
    }
    return zeropp::local_batch(device_, whole, context_);
  }

  /// After the last micro-batch: gradients over updated() of all units are then sums over ranks, of a loss multiplied
  /// by `loss_scale`. Throws Error where they are finished already, since tied ones would count twice. A collective.
  void finish_gradients(float loss_scale = 1) {
    if (gradients_ == Gradients::finished)
      throw Error("the gradients are finished already: call finish_gradients() once a step; train() has called it");
    loss_scale_ = loss_scale;
    reducer_.flush();
    units_.join_ties(pipeline_);
    if (tensor_.size() > 1) units_.sum_over_tensor(tensor_);
    if (stage_ == Stage::none) units_.gradients_due();
    gradients_ = Gradients::finished;
  }
  float loss_scale() const { return loss_scale_; }  ///< what the gradients of the last pass are multiplied by
  /// The norm of the gradients, and the factor that clips them: see clip_by_global_norm. A collective.
  ClipResult clip_gradients(float max_norm) {
    if (!(max_norm >= 0))
      throw ConfigError(text("the gradients' norm is clipped to a value of at least 0, got ", max_norm));
    expect_gradients("clipping");
    const auto argument = Agreement::number_of(text(max_norm, " ", loss_scale_, " ", learning_rate_, " ", labels_));
    auto clip = over_gradients(
        *this, argument,
        [&](auto parts, auto places, auto sums) { kernels::sums_of_squares(device_, parts, places, sums); },
        [&](auto squares, const Agreement& agreement) {
          return ClipResult(kernels::gradient_norm(device_, squares, static_cast<double>(loss_scale_),
                                                   static_cast<double>(max_norm), agreement));
        });
    if (!clip.on_device()) clip.value();  // throws on all ranks where they were given different arguments
    return clip;
  }

  /// Sends what of them other ranks need, a unit after the other: before an optimizer reads them. A collective.
  void publish_gradients() {
    expect_gradients("the optimizer's step");
    for (auto& unit : units()) unit.publish_gradients();
  }
  /// To be called when the weights over updated() have changed on every rank. A collective.
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
      Pool::Program program(programs_, name);
      if (device_.pool().recording()) units_.settle();  // what records gives memory back: see NcclBackend::collective
      auto result = body();
      program.finish();
      return result;
    } catch (...) {
      reducer_.drop();
      units_.abandon();
      gradients_ = Gradients::none;
      throw;
    }
  }

 protected:
  enum class Gradients { none, unfinished, finished, used };  // used: by an optimizer's step

  Gradients gradients() const { return gradients_; }
  void gradients_are(Gradients now) { gradients_ = now; }
  /// Throws Error unless gradients are there and summed over ranks: `who` is about to read them.
  void expect_gradients(std::string_view who) const {
    if (gradients_ == Gradients::unfinished)
      throw Error(text(who,
                       " needs finished gradients: call model.finish_gradients() after the last backward of a step; "
                       "until then ranks hold gradients of their own"));
    if (gradients_ == Gradients::none)
      throw Error(text(who,
                       " needs gradients, and there are none: call model.train(), or forward, backward and "
                       "finish_gradients()"));
  }
  /// Before the passes of a step: waits for the last one's norm, where a capture may not.
  void begin_step(float loss_scale) {
    gradients_ = Gradients::none;
    loss_scale_ = loss_scale;
    steps_.done();
  }
  /// The settings on which the ranks of a model must agree, beside its layers.
  SettingList settings() const {
    auto all = options_.settings();
    all.push_back({"stage", text(static_cast<int>(stage_))});
    all.push_back({"precision", std::string(P::name)});
    return all;
  }

  /// Takes no memory yet: who derives compares the ranks' models, then calls find_units.
  ShardedState(const ModelComms& comms, D& device, Stage stage, const ShardedOptions& options)
      : world_(comms.world),
        comm_(on_device(comms.sharding, device)),
        tensor_(on_device(comms.tensor, device)),
        pipeline_(on_device(comms.pipeline, device)),
        context_(on_device(comms.context, device), options.context_attention),
        device_(device),
        programs_(device.pool()),
        stage_(stage),
        options_(options),
        units_(comm_, device, stage),
        reducer_(comm_, {.bucket_bytes = options.bucket_bytes}) {}

  ~ShardedState() = default;

  /// Takes memory for the rank's part of the state of `layer`, which must stay where it is, and draws the first
  /// weights.
  template <class L>
  void find_units(L& layer, std::vector<ModelParameter> of_model, int in_order) {
    model_parameters_ = std::move(of_model);
    parameters_in_order_ = in_order;
    units_.find(layer);
    units_.initialise(options_.seed, pipeline_);
  }

  Comm world_, comm_, tensor_, pipeline_;
  ContextShard context_;
  D& device_;
  Pool::Owner programs_;
  Stage stage_;
  ShardedOptions options_;
  Units<P, D> units_;
  BucketedReducer<Gradient> reducer_;
  StepCount steps_;
  std::vector<ModelParameter> model_parameters_;
  int parameters_in_order_ = 0;
  float loss_scale_ = 1, learning_rate_ = 0;
  std::int64_t labels_ = 0;  ///< of the last train()'s step: every rank divides by them
  Gradients gradients_ = Gradients::none;
};

}  // namespace zeropp
