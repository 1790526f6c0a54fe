// SPDX-License-Identifier: Apache-2.0
// The weights of a model as whole tensors on rank 0 of the world, one after the other, wherever their parts are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/parallel/sharding/model_parameters.hpp>
#include <zeropp/train/checkpoint/host_copy.hpp>
#include <zeropp/train/checkpoint/place.hpp>
#include <zeropp/train/checkpoint/together.hpp>

namespace zeropp::detail {

/// Brings the elements of rank `from` to rank 0: `out` holds as many there, and none elsewhere. A collective.
template <class T>
void bring_to_first(const Comm& group, int from, std::span<const T> mine, std::span<T> out) {
  const auto& comm = group.host();
  std::vector<std::int64_t> send(static_cast<std::size_t>(comm.size())), receive(send.size());
  if (comm.rank() == from) send[0] = static_cast<std::int64_t>(mine.size());
  receive[static_cast<std::size_t>(from)] = static_cast<std::int64_t>(out.size());
  comm.all_to_all(comm.rank() == from ? mine : std::span<const T>{}, send, out, receive);
}

/// The whole of a parameter that tensor ranks share, on the first of them; elsewhere nothing. A collective.
template <class T>
std::vector<T> join_parts(const Comm& comm, const Parameter& p, std::span<const T> mine) {
  const auto places = gather_texts(comm, place_text(p.slice, 0));
  std::vector<T> whole, part;
  if (comm.rank() == 0) whole.resize(static_cast<std::size_t>(element_count(p.whole_shape())));
  for (int rank = 0; rank < comm.size(); ++rank) {
    if (comm.rank() != 0) {
      bring_to_first(comm, rank, mine, std::span<T>{});
      continue;
    }
    const auto slice = place_from(places[static_cast<std::size_t>(rank)], p.whole_shape())->first;
    part.resize(static_cast<std::size_t>(count_of(slice)));
    bring_to_first(comm, rank, mine, std::span{part});
    slice.for_each_run({0, count_of(slice)}, [&](std::int64_t to, std::int64_t from, std::int64_t count) {
      std::copy_n(part.begin() + from, count, whole.begin() + to);
    });
  }
  return whole;
}

/// Calls f(ModelParameter, values) on every rank for each parameter of the model, in its order; `values` are the whole
/// tensor on rank 0 of the world and may not be looked at elsewhere. A rank holds one unit, one whole tensor and one
/// part of it at a time. A collective.
template <class Model, class F>
void for_each_whole_tensor(Model& model, F&& f) {
  using Weight = typename Model::Precision::Weight;
  using Unit = typename std::remove_reference_t<decltype(model.units())>::value_type;
  const auto comms = model.comms();
  int leased = -1;
  std::unique_ptr<typename Unit::Lease> lease;
  for (auto& p : model.model_parameters()) {
    std::vector<Weight> part, whole;
    std::span<const Weight> values;
    if (p.stage == comms.pipeline.rank()) {
      const auto& here = *model.parameters_by_name().find(p.name)->second;
      auto& unit = model.units()[static_cast<std::size_t>(here.unit)];
      if (std::exchange(leased, here.unit) != here.unit) {
        lease.reset();  // before the next is there
        lease = std::make_unique<typename Unit::Lease>(unit);
      }
      if (comms.sharding.rank() == 0) {
        values = on_host(
            model.device(),
            unit.whole().subspan(static_cast<std::size_t>(here.offset), static_cast<std::size_t>(here.size())), part);
        if (p.split) values = whole = join_parts(comms.tensor, here, values);
      }
    }
    if (p.stage != 0 && comms.sharding.rank() == 0 && comms.tensor.rank() == 0) {
      std::vector<Weight> arrived(static_cast<std::size_t>(comms.pipeline.rank() == 0 ? p.size() : 0));
      bring_to_first(comms.pipeline, p.stage, values, std::span{arrived});
      if (comms.pipeline.rank() == 0) values = whole = std::move(arrived);
    }
    f(p, values);
  }
}

}  // namespace zeropp::detail
