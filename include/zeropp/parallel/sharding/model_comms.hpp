// SPDX-License-Identifier: Apache-2.0
// The communicators of a model, one for each axis of its mesh: what `Sharded` is given a Comm or a Mesh for.
#pragma once

#include <concepts>
#include <utility>

#include <zeropp/comm/mesh.hpp>

namespace zeropp {

struct ModelComms {
  Comm world;     ///< all ranks that hold a part of the model
  Comm sharding;  ///< those with the same part, data ranks and context ranks: what `Sharded` partitions over
  Comm tensor;    ///< those that share its layers
  Comm pipeline;  ///< its stages
  Comm context;   ///< those that share sequences

  /// Data ranks only: a Comm, or a World.
  template <std::convertible_to<const Comm&> C>
  ModelComms(const C& comm) : world(comm), sharding(comm) {}
  ModelComms(Comm all, Comm same, Comm shared, Comm stages, Comm positions)
      : world(std::move(all)),
        sharding(std::move(same)),
        tensor(std::move(shared)),
        pipeline(std::move(stages)),
        context(std::move(positions)) {}
  ModelComms(const Mesh& mesh)
      : world(mesh.world()),
        sharding(mesh.sharding()),
        tensor(mesh.tensor()),
        pipeline(mesh.pipeline()),
        context(mesh.context()) {}
};

}  // namespace zeropp
