// SPDX-License-Identifier: Apache-2.0
// Reductions over all gradients of a model, each parameter once, however ranks share them: the norm is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/comm/comm.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/kernels/elementwise.hpp>
#include <zeropp/kernels/gradient_norm.hpp>
#include <zeropp/layers/parameter.hpp>

namespace zeropp {

/// Reduces all gradients of a model to one number a unit (a parameter where tensor ranks share parameters; in the order
/// of the whole model where a pipeline cuts it), summed over all ranks in an order that depends on neither stage nor
/// pipeline. `f(parts, places, sums)` computes the numbers of this rank: one for each span in `parts`, written to
/// `sums[places[i]]` in the device's memory. `then(sums, agreement)` turns the sums over ranks into the result.
/// Parameters that tensor ranks share count with every rank's part; those that they all hold count once. `argument` is
/// what the agreement is about. A collective.
template <class State, class F, class Then>
auto over_gradients(State& model, double argument, F&& f, Then&& then) {
  auto& device = model.device();
  const auto comms = model.comms();
  const bool in_parts = comms.tensor.size() > 1, in_stages = comms.pipeline.size() > 1;
  const int in_model = in_stages ? model.parameters_in_order() : 0;

  std::vector<std::span<typename State::Gradient>> parts;
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
    // A list of sums, with the argument behind them where there is somebody to agree with. Where tensor ranks share
    // parameters, a second list holds what they add up; the argument too, or it would count once.
    const auto numbers = in_model > 0 ? in_model : static_cast<int>(parts.size());
    const bool agrees = comms.world.size() > 1;
    const auto count = numbers + (agrees ? 1 : 0);
    for (std::size_t i = 0; i < parts.size(); ++i)
      if (split[i]) places[i] += count;
    const Tensor<double, 1> sums(device.pool(), {in_parts ? 2 * count : count}, Purpose::buffers);
    const auto whole = sums.slice(0, count);
    kernels::fill(device, sums.span(), 0.0);
    f(std::span<const typename decltype(parts)::value_type>{parts}, std::span<const int>{places}, sums.span());
    if (agrees) kernels::fill(device, sums.span().last(1), argument);
    comms.sharding.all_reduce(sums.span());
    if (in_parts) {
      const auto shared = sums.slice(count, 2 * count);
      comms.tensor.all_reduce(shared.span());
      kernels::add(device, whole.span(), shared.span(), whole.span());
    }
    if (in_stages) comms.pipeline.all_reduce(whole.span());
    const Agreement agreement{agrees ? &whole.span()[static_cast<std::size_t>(numbers)] : nullptr,
                              argument * comms.world.size()};
    return then(std::span<const double>{whole.span().first(static_cast<std::size_t>(numbers))}, agreement);
  });
}

}  // namespace zeropp
