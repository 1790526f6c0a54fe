// SPDX-License-Identifier: Apache-2.0
// The context that stands between containers and their children under `Sharded`: before a unit runs its weights are
// gathered, and those of the next ones in the order of the type; after it they are released, and after its backward its
// gradients are reduced.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/layers/context.hpp>
#include <zeropp/parallel/sharding/units.hpp>

namespace zeropp {

/// What a context needs of its owner during one micro-batch.
template <Precision P, Device D>
struct SiteLifecycle {
  Units<P, D>& units;
  BucketedReducer<typename P::Gradient>& reducer;
  Reduction reduction;
  int prefetch;  ///< sites to gather ahead of the running one
  bool first_micro_batch = true, last_micro_batch = true;
  Recorder* recorder = nullptr;

  enum class Direction { forward = 1, backward = -1 };

  void enter(int site, Direction direction) {
    for (int ahead = 0; ahead <= prefetch; ++ahead)
      for (auto* unit : at(site, direction, ahead)) unit->gather();
    for (auto* unit : at(site, direction, 0)) unit->arrive();
  }
  /// Releases what neither the next sites nor, at the turn to the backward, this one needs.
  void leave(int site, Direction direction, bool backward_follows) {
    if (direction == Direction::forward && backward_follows && site == units.sites() - 1) return;
    for (auto* unit : units.of_site(site)) {
      bool needed = false;
      for (int ahead = 1; ahead <= prefetch; ++ahead) {
        const auto& next = at(site, direction, ahead);
        needed |= std::find(next.begin(), next.end(), unit) != next.end();
      }
      if (!needed) unit->release();
    }
  }

  /// What the names of a site's parameters have in common: "h.0", "ln_f".
  std::string name_of(int site) const {
    std::string common;
    for (auto* unit : units.of_site(site))
      for (auto* p : unit->parameters()) {
        if (common.empty()) common = p->name.substr(0, p->name.rfind('.'));
        const auto differ = std::mismatch(common.begin(), common.end(), p->name.begin(), p->name.end()).first;
        if (differ == common.end()) continue;
        const auto dot = common.rfind('.', static_cast<std::size_t>(differ - common.begin()));
        if (dot != std::string::npos) common.resize(dot);
      }
    return common;
  }

  void begin_gradients(int site) {
    for (auto* unit : units.gradients_of_site(site)) unit->begin_gradient(reduction, first_micro_batch);
  }
  void end_gradients(int site) {
    for (auto* unit : units.gradients_of_site(site))
      unit->end_gradient(reduction, first_micro_batch, last_micro_batch, reducer);
  }

 private:
  const std::vector<Unit<P, D>*>& at(int site, Direction direction, int ahead) const {
    static const std::vector<Unit<P, D>*> none;
    const int other = site + ahead * static_cast<int>(direction);
    return other < 0 || other >= units.sites() ? none : units.of_site(other);
  }
};

/// Work for gradients that a split backward has left, a site at a time.
template <Device D, Precision P>
struct WeightWork {
  struct OfSite {
    int site;
    typename Context<D, P>::PostponedWork work;
  };
  std::vector<OfSite> sites;
};

template <Device D, Precision P>
class ShardedContext : public Context<D, P> {
 public:
  using Base = Context<D, P>;
  using Direction = typename SiteLifecycle<P, D>::Direction;

  /// With `later` backward leaves there what can wait; a site with a layer that can't split its backward does all.
  ShardedContext(const Base& base, SiteLifecycle<P, D>& lifecycle, WeightWork<D, P>* later = nullptr)
      : Base(base), lifecycle_(&lifecycle), later_(later) {}

  template <class L, class X>
  auto forward(L& child, X x) {
    if constexpr (Container<L>)
      return child.forward(*this, std::move(x));
    else
      return forward_unit(child, std::move(x));
  }
  template <class L, class Dy, class S>
  auto backward(L& child, Dy dy, S saved) {
    if constexpr (Container<L>)
      return child.backward(*this, std::move(dy), std::move(saved));
    else
      return backward_unit(child, std::move(dy), std::move(saved));
  }

  template <class L, class X>
  auto forward_unit(L& child, X x) {
    const int site = lifecycle_->units.site_of(child);
    const auto span = recording(site);
    if (site >= 0) lifecycle_->enter(site, Direction::forward);
    auto out = child.forward(base(), std::move(x));
    if (site >= 0) lifecycle_->leave(site, Direction::forward, this->training());
    return out;
  }
  template <class L, class Dy, class S>
  auto backward_unit(L& child, Dy dy, S saved) {
    const int site = lifecycle_->units.site_of(child);
    if (site < 0) return child.backward(base(), std::move(dy), std::move(saved));
    const auto span = recording(site);
    lifecycle_->enter(site, Direction::backward);
    const bool split = later_ && splits_backward(child);
    if (split)
      this->postpone(&later_->sites.emplace_back(typename WeightWork<D, P>::OfSite{site, {}}).work);
    else
      lifecycle_->begin_gradients(site);
    auto dx = child.backward(base(), std::move(dy), std::move(saved));
    this->postpone(nullptr);
    lifecycle_->leave(site, Direction::backward, false);
    if (!split) lifecycle_->end_gradients(site);
    return dx;
  }
  /// The other half of a backward.
  void run_weight_work(WeightWork<D, P> left) {
    for (auto& [site, work] : left.sites) {
      const auto span = recording(site);
      lifecycle_->begin_gradients(site);
      for (auto& one : work) std::exchange(one, {})(base());
      lifecycle_->end_gradients(site);
    }
  }

 private:
  /// Of what runs while it lives; on GPUs for their tools too.
  auto recording(int site) const {
    auto* recorder = site < 0 ? nullptr : lifecycle_->recorder;
    if constexpr (requires { typename D::Range; }) {
      struct Both {
        Recording recording;
        typename D::Range range;
      };
      const auto name = site >= 0 && (recorder || D::Range::watched()) ? lifecycle_->name_of(site) : std::string();
      return Both{{recorder, SpanKind::unit, name}, typename D::Range(name)};
    } else {
      return Recording(recorder, SpanKind::unit, recorder ? lifecycle_->name_of(site) : std::string());
    }
  }
  Base& base() { return *this; }  // inside a unit nobody stands between any more

  SiteLifecycle<P, D>* lifecycle_;
  WeightWork<D, P>* later_;
};

}  // namespace zeropp
