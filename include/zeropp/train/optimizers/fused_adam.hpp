// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019) over the flat shards of a model:
// one pass that reads gradient, moments and weight and writes moments and weight, with clipping and the inverse of the
// loss scale inside it.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/kernels/adam.hpp>
#include <zeropp/kernels/adam_stochastic.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/parallel/sharding/sharded_state.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>

namespace zeropp {

struct AdamOptions {
  float beta1 = 0.9f, beta2 = 0.95f;
  float epsilon = 1e-8f;  ///< more than 0
  float weight_decay = 0.1f;  ///< for parameters that ask for it (Parameter::decay)
};

/// AdamW over a Sharded, or over the ShardedState of any.
template <class Model>
class FusedAdam final : public Optimizer<moment_t<typename Model::Precision>> {
  using Base = Optimizer<moment_t<typename Model::Precision>>;

 public:
  using Precision = typename Model::Precision;
  using typename Base::Moment;

  /// Takes 2 · sizeof(Moment) bytes a parameter that this rank updates. `model` must outlive it. A collective: ranks
  /// with other options than each other are refused.
  explicit FusedAdam(Model& model, AdamOptions options = {}) : model_(model), options_(options) {
    check(options.beta1 >= 0 && options.beta1 < 1, "beta1", options.beta1, "in [0, 1)");
    check(options.beta2 >= 0 && options.beta2 < 1, "beta2", options.beta2, "in [0, 1)");
    check(options.epsilon > 0 && std::isnormal(options.epsilon), "epsilon", options.epsilon,
          "more than 0 and a normal float (1.2e-38 or more): a weight without gradients would become 0 / 0");
    check(options.weight_decay >= 0, "weight_decay", options.weight_decay, "at least 0");
    expect_same_settings(model.comms().world,
                         {{"beta1", text(options.beta1)},
                          {"beta2", text(options.beta2)},
                          {"epsilon", text(options.epsilon)},
                          {"weight_decay", text(options.weight_decay)}},
                         "", "has another optimizer");
    for (auto& unit : model.units()) {
      const auto bytes = static_cast<std::size_t>(unit.updated().size()) * sizeof(Moment);
      states_.push_back({model.device().pool().take_persistent(bytes, Purpose::states),
                         model.device().pool().take_persistent(bytes, Purpose::states), runs(unit)});
      for (auto moments : {first(states_.size() - 1), second(states_.size() - 1)})
        kernels::fill(model.device(), moments, Moment{});
    }
  }

  StepDone step(float learning_rate, const ClipResult& clip = {}) override {
    const auto number = this->steps() + 1;
    if (clip.on_device() || clip.finite()) enqueue(learning_rate, clip, number);
    this->steps_.add(clip);
    model_.add_step(clip, learning_rate);
    return StepDone(clip);
  }

  const AdamOptions& options() const { return options_; }
  std::span<Moment> first(std::size_t i) override { return view(states_.at(i).first, i); }
  std::span<Moment> second(std::size_t i) override { return view(states_.at(i).second, i); }

 private:
  static constexpr bool stochastic = rounds_stochastically<Precision>;
  using Run = std::conditional_t<stochastic, kernels::AdamStochasticRun, kernels::AdamRun>;
  struct State {
    Storage first, second;
    std::vector<Run> runs;  ///< within updated()
  };

  /// Step `number`, where the clip turns out finite.
  void enqueue(float learning_rate, const ClipResult& clip, std::int64_t number) {
    const Recording span(model_.recorder(), SpanKind::optimizer);
    const auto bias = [&](float beta) { return 1 - std::pow(static_cast<double>(beta), static_cast<double>(number)); };
    const kernels::AdamStep step{.learning_rate = learning_rate,
                                 .beta1 = options_.beta1,
                                 .beta2 = options_.beta2,
                                 .epsilon = options_.epsilon,
                                 .gradient_scale = (clip.on_device() ? 1 : clip.factor()) * (1 / model_.loss_scale()),
                                 .clip = clip.on_device(),
                                 .bias_correction1 = bias(options_.beta1),
                                 .bias_correction2 = bias(options_.beta2)};
    model_.publish_gradients();
    for (std::size_t i = 0; i < states_.size(); ++i) {
      update(i, step, static_cast<std::uint64_t>(number));
      model_.publish_unit(i);
    }
    model_.publish_others();
  }

  static void check(bool good, std::string_view name, float value, std::string_view wanted) {
    if (!good) throw ConfigError(text("Adam's ", name, " must be ", wanted, ", got ", value));
  }

  std::span<Moment> view(const Storage& storage, std::size_t i) {
    return {reinterpret_cast<Moment*>(storage.get()), static_cast<std::size_t>(model_.units()[i].updated().size())};
  }

  /// Runs of parameters with the same decay, or, to round stochastically, one for each parameter; the padding has no
  /// decay.
  template <class U>
  std::vector<Run> runs(U& unit) const {
    std::vector<Run> runs;
    const auto update = unit.updated();
    auto add = [&](Range flat, bool decay, [[maybe_unused]] std::uint64_t stream) {
      const auto here = update.clipped(flat);
      if (here.size() == 0) return;
      Run run{.range = {here.begin - update.begin, here.end - update.begin},
              .weight_decay = decay ? options_.weight_decay : 0};
      if constexpr (stochastic)
        run.stream = stream, run.first = here.begin - flat.begin;
      else if (!runs.empty() && runs.back().weight_decay == run.weight_decay)
        run.range.begin = runs.back().range.begin, runs.pop_back();
      runs.push_back(run);
    };
    for (auto* p : unit.parameters()) add({p->offset, p->offset + p->size()}, p->decay, stream_of(*p));
    add({unit.size(), unit.padded()}, false, 0);  // zeros, which rounding leaves as they are
    return runs;
  }

  /// The number from which the bits that round a parameter are drawn. Tensor ranks that hold it whole round it alike;
  /// each part of one that they share has bits of its own.
  static std::uint64_t stream_of(const Parameter& p) {
    auto name = p.name;
    if (p.split())
      for (auto& range : p.slice.ranges) name += text(" ", range.begin, "-", range.end);
    return hash_of(name);
  }

  void update(std::size_t i, const kernels::AdamStep& step, [[maybe_unused]] std::uint64_t number) {
    auto& unit = model_.units()[i];
    const auto at = static_cast<std::size_t>(unit.updated().begin - unit.held().begin);
    const kernels::AdamSpan<typename Precision::Weight, typename Precision::Gradient, Moment> buffers{
        .weight = unit.weights().subspan(at, static_cast<std::size_t>(unit.updated().size())),
        .masters = unit.masters(),
        .gradient = unit.gradients(),
        .first = first(i),
        .second = second(i)};
    const std::span<const Run> runs{states_[i].runs};
    if constexpr (stochastic)
      kernels::adam_stochastic(model_.device(), buffers, runs, step, model_.options().seed, number);
    else
      kernels::adam(model_.device(), buffers, runs, step);
  }

  Model& model_;
  AdamOptions options_;
  std::vector<State> states_;
};

/// One type for all models of a precision and device.
template <class Model>
FusedAdam(Model&, AdamOptions = {}) -> FusedAdam<ShardedState<typename Model::Precision, typename Model::Device>>;

}  // namespace zeropp
