// SPDX-License-Identifier: Apache-2.0
// An optimizer of a rule (kernels/update_rule.hpp) over the flat shards of a model: one pass that reads gradient, slots
// and weight and writes slots and weight, with clipping and the inverse of the loss scale inside it. It owns the slots;
// the rule is the arithmetic alone.
//
//   FusedElementwise lion{model, Lion{.weight_decay = 0.3f}, {{.pattern = "wte.*", .rate = 0.1f}}};
//   lion.step(rate, clip_by_global_norm(model, 1.0f));
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/update.hpp>
#include <zeropp/kernels/update_stochastic.hpp>
#include <zeropp/parallel/sharding/sharded_state.hpp>
#include <zeropp/train/clip.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>
#include <zeropp/train/optimizers/parameter_group.hpp>

namespace zeropp {

/// Over a Sharded, or over the ShardedState of any.
template <kernels::UpdateRule Rule, class Model>
class FusedElementwise : public Optimizer<state_t<typename Model::Precision>> {
  using Base = Optimizer<state_t<typename Model::Precision>>;

 public:
  using Precision = typename Model::Precision;
  using typename Base::State;
  using Groups = std::vector<ParameterGroup>;

  /// Takes sizeof(State) bytes for each slot of a parameter that this rank updates. `model` must outlive it. Throws
  /// ConfigError for settings that cannot work and for a group that matches no parameter. A collective: ranks with
  /// other settings than each other are refused.
  explicit FusedElementwise(Model& model, Rule rule = {}, Groups groups = {})
      : model_(model), rule_(std::move(rule)), groups_(std::move(groups)) {
    SettingList settings{{"rule", std::string(Rule::name)}};
    const auto expect = [&](const kernels::RuleSetting& setting) {
      const auto& [name, value, least, below] = setting;
      if (!(value >= least && value < below))
        throw ConfigError(text(Rule::name, "'s ", name, " must be ",
                               std::isfinite(below) ? text("at least ", least, " and below ", below)
                                                    : text("finite and at least ", least),
                               ", got ", value));
      settings.push_back({std::string(name), text(value)});
    };
    for (const auto& setting : rule_.settings()) expect(setting);
    expect({"weight_decay", rule_.weight_decay});
    check_groups(settings);
    expect_same_settings(model.comms().world, settings, "", "has another optimizer");
    for (auto& unit : model.units()) {
      auto& state = states_.emplace_back();
      const auto bytes = static_cast<std::size_t>(unit.updated().size()) * sizeof(State);
      for (std::size_t s = 0; s < slot_count; ++s)
        state.slots.push_back(model.device().pool().take_persistent(bytes, Purpose::states));
      state.runs = runs(unit);
      for (std::size_t s = 0; s < slot_count; ++s)
        kernels::fill(model.device(), slot(s, states_.size() - 1), State{});
    }
  }

  StepDone step(float learning_rate, const ClipResult& clip = {}) override {
    const auto number = this->steps() + 1;
    if (clip.on_device() || clip.finite()) enqueue(learning_rate, clip, number);
    this->steps_.add(clip);
    model_.add_step(clip, learning_rate);
    return StepDone(clip);
  }

  const Rule& options() const { return rule_; }
  std::string_view name() const override { return Rule::name; }
  std::span<const std::string_view> slots() const override { return Rule::slots; }
  std::span<State> slot(std::size_t s, std::size_t i) override {
    return {reinterpret_cast<State*>(states_.at(i).slots.at(s).get()),
            static_cast<std::size_t>(model_.units()[i].updated().size())};
  }

 private:
  static_assert(kernels::slots_are_named<Rule>(),
                "the slots of a rule need names of their own: not empty, without '/', none twice, and none of "
                "remainder, master, first and second, which checkpoints use");
  static constexpr bool stochastic = rounds_stochastically<Precision>;
  static constexpr std::size_t slot_count = kernels::slot_count<Rule>;
  struct UnitState {
    std::vector<Storage> slots;
    std::vector<kernels::UpdateRun> runs;  ///< within updated()
  };

  /// Step `number`, where the clip turns out finite.
  void enqueue(float learning_rate, const ClipResult& clip, std::int64_t number) {
    const Recording span(model_.recorder(), SpanKind::optimizer);
    const kernels::UpdateStep step{
        .learning_rate = learning_rate,
        .number = number,
        .gradient_scale = (clip.on_device() ? 1 : clip.factor()) * (1 / model_.loss_scale()),
        .clip = clip.on_device()};
    model_.publish_gradients();
    for (std::size_t i = 0; i < states_.size(); ++i) {
      update(i, step);
      model_.publish_unit(i);
    }
    model_.publish_others();
  }

  void check_groups(SettingList& settings) const {
    for (auto& group : groups_) {
      const auto expect = [&](std::string_view what, float value) {
        if (!(value >= 0 && std::isfinite(value)))
          throw ConfigError(text("the parameter group \"", group.pattern, "\" has the ", what, " ", value,
                                 "; give a finite number from 0"));
      };
      expect("rate", group.rate);
      expect("weight decay", group.weight_decay.value_or(0));
      bool found = false;
      for (auto& p : model_.model_parameters()) found = found || matches(group.pattern, p.name);
      if (!found)
        throw ConfigError(text("no parameter of the model is called \"", group.pattern,
                               "\", as a parameter group has it; its first is ", model_.model_parameters()[0].name));
      settings.push_back({"parameter group", text(group.pattern, ": rate ", group.rate, ", weight decay ",
                                                  group.weight_decay ? text(*group.weight_decay) : "as it is")});
    }
  }

  /// Runs of parameters that are updated alike, or, to round stochastically, one for each parameter; the padding has no
  /// decay.
  template <class U>
  std::vector<kernels::UpdateRun> runs(U& unit) const {
    std::vector<kernels::UpdateRun> runs;
    const auto update = unit.updated();
    auto add = [&](Range flat, float decay, float rate, std::uint64_t stream) {
      const auto here = update.clipped(flat);
      if (here.size() == 0) return;
      kernels::UpdateRun run{
          .range = {here.begin - update.begin, here.end - update.begin}, .weight_decay = decay, .rate = rate};
      if constexpr (stochastic)
        run.stream = stream, run.first = here.begin - flat.begin;
      else if (!runs.empty() && runs.back().weight_decay == decay && runs.back().rate == rate)
        run.range.begin = runs.back().range.begin, runs.pop_back();
      runs.push_back(run);
    };
    for (auto* p : unit.parameters()) {
      const auto* group = group_of(groups_, p->name);
      const auto decay = p->decay ? rule_.weight_decay : 0;
      add({p->offset, p->offset + p->size()}, group ? group->weight_decay.value_or(decay) : decay,
          group ? group->rate : 1, stream_of(*p));
    }
    add({unit.size(), unit.padded()}, 0, 1, 0);  // zeros, which rounding leaves as they are
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

  void update(std::size_t i, const kernels::UpdateStep& step) {
    auto& unit = model_.units()[i];
    const auto at = static_cast<std::size_t>(unit.updated().begin - unit.held().begin);
    kernels::UpdateSpan<typename Precision::Weight, typename Precision::Gradient, State, slot_count> buffers{
        .weight = unit.weights().subspan(at, static_cast<std::size_t>(unit.updated().size())),
        .masters = unit.masters(),
        .gradient = unit.gradients(),
        .slots = {}};
    for (std::size_t s = 0; s < slot_count; ++s) buffers.slots[s] = slot(s, i);
    const std::span<const kernels::UpdateRun> runs{states_[i].runs};
    if constexpr (stochastic)
      kernels::update_stochastic(model_.device(), rule_, buffers, runs, step, model_.options().seed);
    else
      kernels::update(model_.device(), rule_, buffers, runs, step);
  }

  Model& model_;
  Rule rule_;
  Groups groups_;
  std::vector<UnitState> states_;
};

/// One type for all models of a precision and device.
template <class Model, class Rule>
FusedElementwise(Model&, Rule) -> FusedElementwise<Rule, ShardedState<typename Model::Precision, typename Model::Device>>;
template <class Model, class Rule>
FusedElementwise(Model&, Rule, std::vector<ParameterGroup>)
    -> FusedElementwise<Rule, ShardedState<typename Model::Precision, typename Model::Device>>;

}  // namespace zeropp
