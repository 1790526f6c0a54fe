// SPDX-License-Identifier: Apache-2.0
// A number taken over all gradients of a model, each parameter once, however ranks share them: the norm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <zeropp/comm/comm.hpp>

namespace zeropp::detail {

/// Σ f(gradients) over the shards of `units` and the ranks of all groups: f(parts, sums) puts into sums[i] what it
/// makes of parts[i]. Sums are added up by unit, or for a pipeline of `in_model` > 0 parameters by their order in the
/// model. Of parameters that tensor ranks share each adds its part; those that they all hold count once. A collective.
template <class Gradient, class Units, class F>
double sum_over_gradients(Units& units, const Comm& comm, const Comm& tensor, const Comm& pipeline, int in_model,
                          F&& f) {
  const auto slots = in_model > 0 ? static_cast<std::size_t>(in_model) : units.size();
  std::vector<double> whole(slots), split(slots);
  std::vector<std::span<Gradient>> parts;
  std::vector<double*> places;
  for (std::size_t i = 0; i < units.size(); ++i) {
    auto& unit = units[i];
    const auto slot = in_model > 0 ? static_cast<std::size_t>(unit.parameters().front()->order) : i;
    const auto add = [&](std::span<Gradient> part, std::vector<double>& sums) {
      parts.push_back(part);
      places.push_back(&sums[slot]);
    };
    if (tensor.size() == 1)
      add(unit.shard_gradients(), whole);
    else
      for (auto* p : unit.parameters()) add(unit.shard_gradients(*p), p->split() ? split : whole);
  }
  std::vector<double> sums(parts.size());
  f(std::span<const std::span<Gradient>>{parts}, std::span{sums});
  for (std::size_t i = 0; i < sums.size(); ++i) *places[i] += sums[i];
  comm.host().all_reduce(std::span{whole});
  if (tensor.size() > 1) {
    comm.host().all_reduce(std::span{split});
    tensor.host().all_reduce(std::span{split});
  }
  double sum = 0;
  for (std::size_t i = 0; i < slots; ++i) whole[i] += split[i];
  if (pipeline.size() > 1) pipeline.host().all_reduce(std::span{whole});
  for (double one : whole) sum += one;
  return sum;
}

}  // namespace zeropp::detail
