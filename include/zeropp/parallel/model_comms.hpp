// SPDX-License-Identifier: Apache-2.0
// The communicators of a model, one for each axis of its mesh: what `Sharded` is given a Comm or a Mesh for.
#pragma once

#include <concepts>
#include <utility>

#include <zeropp/comm/mesh.hpp>

namespace zeropp {

struct ModelComms {
  Comm world;     ///< all ranks that hold a part of the model
  Comm data;      ///< those with the same part: what `Sharded` partitions over
  Comm tensor;    ///< those that share its layers
  Comm pipeline;  ///< its stages

  /// Data ranks only: a Comm, or a World.
  template <std::convertible_to<const Comm&> C>
  ModelComms(const C& comm) : world(comm), data(comm) {}
  ModelComms(Comm all, Comm same, Comm shared, Comm stages)
      : world(std::move(all)), data(std::move(same)), tensor(std::move(shared)), pipeline(std::move(stages)) {}
  ModelComms(const Mesh& mesh)
      : world(mesh.world()), data(mesh.data()), tensor(mesh.tensor()), pipeline(mesh.pipeline()) {}
};

}  // namespace zeropp
