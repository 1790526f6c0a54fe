// SPDX-License-Identifier: Apache-2.0
// The life cycle of a site of a model, a layer that runs as a whole with the units it needs: its weights are gathered
// before it runs, and those of the next sites ahead of them; they are released after it, and its gradients reduced.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <zeropp/parallel/sharding/units.hpp>

namespace zeropp {

/// During one micro-batch.
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
  /// Releases this site's weights, unless a site ahead needs them or the backward begins here.
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

  /// The common beginning of the names of a site's parameters: "h.0", "ln_f".
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

}  // namespace zeropp
