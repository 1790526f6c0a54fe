// SPDX-License-Identifier: Apache-2.0
// Numbers taken over all gradients of a model, each parameter once, however ranks share them: what the norm is made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/layers/parameter.hpp>

namespace zeropp {

/// A number for each unit of the model, or, where tensor ranks share parameters, for each parameter; for a pipeline
/// they are in the order of the whole model: f(parts, places, sums) puts what it makes of the gradients parts[i] into
/// sums[places[i]], in the device's memory. `then` gets the sums over all ranks, of an order that depends on neither
/// stage nor pipeline, and makes the result of them. Of parameters that tensor ranks share each adds its part; those
/// that they all hold count once. A collective.
template <class Model, class F, class Then>
auto over_gradients(Model& model, F&& f, Then&& then) {
  auto& device = model.device();
  const auto comms = model.comms();
  const bool in_parts = comms.tensor.size() > 1, in_stages = comms.pipeline.size() > 1;
  const int in_model = in_stages ? model.parameters_in_order() : 0;

  std::vector<std::span<typename Model::Gradient>> parts;
  std::vector<int> places;
  std::vector<bool> split;
  const auto add = [&](auto part, const Parameter& p, bool is_split) {
    places.push_back(in_model > 0 ? p.order : static_cast<int>(parts.size()));
    parts.push_back(part);
    split.push_back(is_split);
  };
  return model.guarded("over gradients", [&] {
    for (auto& unit : model.units()) {
      if (!in_parts)
        add(unit.shard_gradients(), *unit.parameters().front(), false);
      else
        for (auto* p : unit.parameters()) add(unit.shard_gradients(*p), *p, p->split());
    }
    // Shared ones stand behind the others until tensor ranks have added them up.
    const auto count = in_model > 0 ? in_model : static_cast<int>(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i)
      if (split[i]) places[i] += count;
    const Tensor<double, 1> sums(device.pool(), {in_parts ? 2 * count : count}, Purpose::buffers);
    const auto whole = sums.slice(0, count);
    kernels::fill(device, sums.span(), 0.0);
    f(std::span<const typename decltype(parts)::value_type>{parts}, std::span<const int>{places}, sums.span());
    comms.sharding.all_reduce(sums.span());
    if (in_parts) {
      const auto shared = sums.slice(count, 2 * count);
      comms.tensor.all_reduce(shared.span());
      kernels::add(device, whole.span(), shared.span(), whole.span());
    }
    if (in_stages) comms.pipeline.all_reduce(whole.span());
    return then(std::span<const double>{whole.span()});
  });
}

}  // namespace zeropp
