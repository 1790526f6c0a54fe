// SPDX-License-Identifier: Apache-2.0
// The context between containers and their children under `Sharded`: it gathers, releases and reduces at the borders of
// sites. Inside a site layers run with the plain context.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/trace.hpp>
#include <zeropp/layers/context.hpp>
#include <zeropp/parallel/sharding/site_lifecycle.hpp>

namespace zeropp {

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
      return run_forward(*this, child, std::move(x));
    else
      return forward_unit(child, std::move(x));
  }
  template <class L, class Dy, class S>
  auto backward(L& child, Dy dy, S saved) {
    if constexpr (Container<L>)
      return run_backward(*this, child, std::move(dy), std::move(saved));
    else
      return backward_unit(child, std::move(dy), std::move(saved));
  }

  template <class L, class X>
  auto forward_unit(L& child, X x) {
    const int site = lifecycle_->units.site_of(child);
    const auto span = recording(site);
    if (site >= 0) lifecycle_->enter(site, Direction::forward);
    auto out = run_forward(base(), child, std::move(x));
    if (site >= 0) lifecycle_->leave(site, Direction::forward, this->training());
    return out;
  }
  template <class L, class Dy, class S>
  auto backward_unit(L& child, Dy dy, S saved) {
    const int site = lifecycle_->units.site_of(child);
    if (site < 0) return run_backward(base(), child, std::move(dy), std::move(saved));
    const auto span = recording(site);
    lifecycle_->enter(site, Direction::backward);
    const bool split = later_ && splits_backward(child);
    if (split)
      this->postpone(&later_->sites.emplace_back(typename WeightWork<D, P>::OfSite{site, {}}).work);
    else
      lifecycle_->begin_gradients(site);
    auto dx = run_backward(base(), child, std::move(dy), std::move(saved));
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
  /// A span in the trace, of the work that runs while it lives; on GPUs for their tools too.
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
