// SPDX-License-Identifier: Apache-2.0
// The units of a model: found by looking through its containers, in the order of the type; tied parameters resolved;
// the first weights drawn. A *site* is a layer that runs as a whole, with the units it needs.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/initialise.hpp>
#include <zeropp/layers/layer.hpp>
#include <zeropp/parallel/sharding/unit.hpp>

namespace zeropp {

template <Precision P, Device D>
class Units {
 public:
  using Weight = typename P::Weight;
  using Gradient = typename P::Gradient;

  Units(Comm comm, D& device, Stage stage) : comm_(std::move(comm)), device_(&device), stage_(stage) {}

  /// Finds those of `model`, and takes the memory that they keep. Once.
  template <class L>
  void find(L& model) {
    std::vector<std::vector<Parameter*>> sites;
    collect(model, sites);
    check(sites);
    std::set<std::string, std::less<>> drawing;
    visit_random_names(model, [&](const std::string& name) {
      if (!drawing.insert(name).second)
        throw ConfigError(text("two layers that draw random numbers are called ", name,
                               ", so they would draw the same; give each a name of its own"));
    });
    for (auto& site : sites) {
      std::vector<Parameter*> own;
      const auto make = [&] {
        if (!own.empty()) units_.emplace_back(static_cast<int>(units_.size()), std::move(own), comm_, *device_, stage_);
        own.clear();
      };
      for (auto* p : site) {
        if (!p->tied_to.empty()) continue;
        const bool alone = shared_.contains(p->name);
        if (alone) make();
        own.push_back(p);
        if (alone) make();
      }
      make();
    }
    for (auto& site : sites) add_site(site);
  }

  std::deque<Unit<P, D>>& all() { return units_; }
  const std::deque<Unit<P, D>>& all() const { return units_; }
  int sites() const { return static_cast<int>(sites_.size()); }
  /// Units whose weights the layers of site `site` use.
  const std::vector<Unit<P, D>*>& of_site(int site) const { return sites_[static_cast<std::size_t>(site)].weights; }
  /// Units that their gradients go to: the same, but a tied parameter's own twin for its owner.
  const std::vector<Unit<P, D>*>& gradients_of_site(int site) const {
    return sites_[static_cast<std::size_t>(site)].gradients;
  }

  /// The site of a layer that runs as a whole; -1 if it has no parameters.
  template <class L>
  int site_of(L& layer) const {
    const Parameter* first = nullptr;
    visit_parameters(layer, [&](Parameter& p) {
      if (!first) first = &p;
    });
    return first ? site_of_parameter_.at(first) : -1;
  }

  const std::map<std::string, Parameter*, std::less<>>& by_name() const { return by_name_; }

  /// Draws the first weights. Every rank draws its shard; the others come over the communicators.
  void initialise(std::uint64_t seed, const Comm& pipeline) {
    for (auto& unit : units_) initialise(unit, seed);
    exchange_weights(pipeline, [](auto& unit) { return unit.held() != unit.shard(); });
    if constexpr (P::keeps_master) {
      std::vector<Piece> pieces;
      for (auto& unit : units_)
        if (unit.updated() != unit.shard()) pieces.push_back(unit.masters_piece());
      if (!pieces.empty()) comm_.all_gather(dtype_of<kept_t<Weight>>, pieces);
    }
  }

  /// Starts the gather of unit i's new weights (stages 1 and 2) where communication overlaps with computing. Then
  /// publish_others() sends the weights not sent here, and tied ones to other pipeline stages. Both are collectives.
  void publish_unit(std::size_t i) {
    auto& unit = units_[i];
    if (comm_.overlaps() && unit.held() != unit.updated()) unit.publish();
  }
  void publish_others(const Comm& pipeline) {
    release();
    exchange_weights(pipeline, [&](auto& unit) { return !comm_.overlaps() && unit.held() != unit.updated(); });
  }

  /// The same for gradients (stage 0); what goes on beside computing waits for Unit::publish_gradients.
  void gradients_due() {
    std::vector<Piece> pieces;
    for (auto& unit : units_) comm_.overlaps() ? unit.gradients_due() : pieces.push_back(unit.gradients_piece());
    if (!pieces.empty()) comm_.all_gather(dtype_of<Gradient>, pieces);
  }

  /// Adds the gradients of twins, summed over ranks, to those of their owners.
  void join_ties(const Comm& pipeline) {
    for (auto& tie : ties_) {
      if (tie.owner && tie.twin) {
        tie.owner->add_to_shard(tie.twin->shard_gradients());
      } else if (tie.twin) {
        pipeline.send(tie.stage, std::span<const Gradient>{tie.twin->shard_gradients()});
      } else {
        Tensor<Gradient, 1> sum(device_->pool(), {tie.owner->shard().size()}, Purpose::gradients);
        pipeline.recv(tie.stage, sum.span());
        tie.owner->add_to_shard(sum.span());
      }
    }
  }

  /// Sums the gradients of parameters that every tensor rank holds whole but computed in part (Parameter). One
  /// collective.
  void sum_over_tensor(const Comm& tensor) {
    std::vector<std::span<Gradient>> partial;
    std::int64_t count = 0;
    for (auto& unit : units_)
      for (auto* p : unit.parameters()) {
        if (!p->sum_over_tensor) continue;
        partial.push_back(unit.shard_gradients(*p));
        count += static_cast<std::int64_t>(partial.back().size());
      }
    if (count == 0) return;
    Tensor<Gradient, 1> sum(device_->pool(), {count}, Purpose::gradients);
    const auto copy = [&](bool back) {
      auto at = sum.span();
      for (auto part : partial) {
        const auto place = at.first(part.size());
        kernels::copy(*device_, std::span<const Gradient>{back ? place : part}, back ? part : place);
        at = at.subspan(part.size());
      }
    };
    copy(false);
    tensor.all_reduce(sum.span());
    copy(true);
  }

  /// Waits on the host for what has been sent and asked for: nothing of it is under way any more.
  void settle() {
    each(&Unit<P, D>::settle);
    device_->synchronize();
  }
  /// After an error nothing stays gathered or half reduced.
  void abandon() { each(&Unit<P, D>::abandon); }
  void release() { each(&Unit<P, D>::release); }

 private:
  void each(void (Unit<P, D>::*f)()) {
    for (auto* list : {&units_, &twins_})
      for (auto& unit : *list) (unit.*f)();
  }
  template <class L>
  void collect(L& layer, std::vector<std::vector<Parameter*>>& sites) {
    if constexpr (ContainerOfUnits<L>)
      for_each_child(layer, [&](auto& child) { add(child, sites); });
    else if constexpr (Container<L>)
      for_each_child(layer, [&](auto& child) { collect(child, sites); });
    else
      add(layer, sites);
  }
  template <class L>
  static void add(L& layer, std::vector<std::vector<Parameter*>>& sites) {
    std::vector<Parameter*> found;
    visit_parameters(layer, [&](Parameter& p) { found.push_back(&p); });
    if (!found.empty()) sites.push_back(std::move(found));
  }

  /// Names are unique, ties lead to a parameter of the same shape that is not tied itself. Before memory is taken.
  void check(const std::vector<std::vector<Parameter*>>& sites) {
    for (auto& site : sites)
      for (auto* p : site) {
        p->size();  // throws where it overflows
        if (p->tied_to.empty() && !by_name_.emplace(p->name, p).second) refuse_second(*p);
      }
    for (auto& site : sites)
      for (auto* p : site) {
        if (p->tied_to.empty()) {
          if (p->tied_stage >= 0) shared_.insert(p->name);
          continue;
        }
        shared_.insert(p->tied_to);
        if (p->tied_stage >= 0) continue;  // its owner is on another stage; PipelineStage has compared them
        const auto owner = by_name_.find(p->tied_to);
        check_tie(*p, owner == by_name_.end() ? nullptr : owner->second);
      }
  }

  /// Shards go from owners to distant twins, which are cut alike; then to the ranks that lack them, of owners where
  /// `incomplete` says so.
  template <class F>
  void exchange_weights(const Comm& pipeline, F incomplete) {
    std::vector<Piece> pieces;
    const auto send = [&](Unit<P, D>& unit) {  // beside what computes, each waited for where it is needed first
      comm_.overlaps() ? unit.publish() : pieces.push_back(unit.weights_piece());
    };
    for (auto& unit : units_)
      if (incomplete(unit)) send(unit);
    for (auto& tie : ties_) {
      if (tie.stage < 0) continue;
      if (tie.owner) {
        pipeline.send(tie.stage, std::span<const Weight>{tie.owner->shard_weights()});
      } else {
        pipeline.recv(tie.stage, tie.twin->shard_weights());
        if (tie.twin->held() != tie.twin->shard()) send(*tie.twin);
      }
    }
    if (!pieces.empty()) comm_.all_gather(dtype_of<Weight>, pieces);
  }

  void add_site(const std::vector<Parameter*>& site) {
    using Role = typename Unit<P, D>::Role;
    Site found;
    const auto add = [](std::vector<Unit<P, D>*>& list, Unit<P, D>& unit) {
      if (std::find(list.begin(), list.end(), &unit) == list.end()) list.push_back(&unit);
    };
    for (auto* p : site) {
      if (p->tied_to.empty()) {
        auto& unit = units_[static_cast<std::size_t>(p->unit)];
        add(found.weights, unit);
        add(found.gradients, unit);
        if (p->tied_stage >= 0) ties_.push_back({&unit, nullptr, p->tied_stage});
        continue;
      }
      const auto* owner = p->tied_stage >= 0 ? nullptr : by_name_.at(p->tied_to);
      auto* unit = owner ? &units_[static_cast<std::size_t>(owner->unit)] : nullptr;
      auto& twin = twins_.emplace_back(owner ? owner->unit : -1, std::vector{p}, comm_, *device_, stage_,
                                       owner ? Role::twin : Role::distant_twin);
      if (unit) unit->add_tied(*p, *owner);
      add(found.weights, unit ? *unit : twin);
      add(found.gradients, twin);
      ties_.push_back({unit, &twin, p->tied_stage});
    }
    site_of_parameter_.emplace(site.front(), static_cast<int>(sites_.size()));
    sites_.push_back(std::move(found));
  }

  void initialise(Unit<P, D>& unit, std::uint64_t seed) {
    const auto shard = unit.shard();
    auto weights = unit.shard_weights();
    auto masters = unit.masters();
    if constexpr (P::keeps_master)
      masters = masters.subspan(static_cast<std::size_t>(shard.begin - unit.updated().begin));
    const auto part = [&](auto span, Range flat) {  // `flat` counts from the begin of the flat buffer
      return span.empty() ? span
                          : span.subspan(static_cast<std::size_t>(flat.begin - shard.begin),
                                         static_cast<std::size_t>(flat.size()));
    };
    for (auto* p : unit.parameters()) {
      const Random random(seed, RandomPurpose::initialisation, hash_of(p->name));
      p->for_each_run([&](std::int64_t whole, std::int64_t here, std::int64_t count) {
        const auto first = p->offset + here;
        const auto range = shard.clipped({first, first + count});
        if (range.size() > 0)
          kernels::initialise(*device_, p->init, random, whole + (range.begin - first), part(weights, range),
                              part(masters, range));
      });
    }
    const Range padding{std::max(shard.begin, std::min(unit.size(), shard.end)), shard.end};
    kernels::initialise(*device_, Init{}, Random{seed, RandomPurpose::initialisation}, 0, part(weights, padding),
                        part(masters, padding));
  }

  Comm comm_;
  D* device_;
  Stage stage_;
  struct Site {
    std::vector<Unit<P, D>*> weights, gradients;
  };
  /// A tied parameter's unit and its twin; one of them is null where it is on stage `stage` of the pipeline.
  struct Tie {
    Unit<P, D>* owner;
    Unit<P, D>* twin;
    int stage;
  };
  std::deque<Unit<P, D>> units_, twins_;  // addresses must stay: reductions under way point to them
  std::vector<Site> sites_;
  std::vector<Tie> ties_;
  std::set<std::string, std::less<>> shared_;  ///< names of parameters that others are tied to: units of their own
  std::unordered_map<const Parameter*, int> site_of_parameter_;
  std::map<std::string, Parameter*, std::less<>> by_name_;
};

}  // namespace zeropp
