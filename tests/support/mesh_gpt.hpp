// SPDX-License-Identifier: Apache-2.0
// The small GPT on a mesh: tensor x pipeline x data x context ranks.
#pragma once

#include <utility>

#include <zeropp/parallel/parallelize.hpp>

#include "tiny_gpt.hpp"

namespace test {

struct Layout {
  int data = 1, tensor = 1, pipeline = 1;
  bool sequence_parallel = false;
  PipelineKind schedule = PipelineKind::one_forward_one_backward;
  int chunks = 1;
  int context = 1;
  ContextAttention attention = ContextAttention::ulysses;

  int ranks() const { return data * tensor * pipeline * context; }
};

/// Sizes that four tensor ranks and four stages divide.
inline RunOptions mesh_options() {
  RunOptions o{.rows = 8, .micro_batches = 4, .steps = 4};
  o.config = {.vocabulary = 64, .sequence = 12, .width = 24, .heads = 4, .layers = 4};
  return o;
}

template <class G, class P = Fp32, Device D>
Record train_on_mesh(Stage stage, const Comm& world, D& device, const Layout& layout, const RunOptions& o) {
  const Mesh mesh{
      world, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline, .context = layout.context}};
  ShardedEngine<Parallel<G>, P, D> model{
      mesh,
      device,
      parallelize(
          mesh, G{o.config},
          {.schedule = layout.schedule, .chunks = layout.chunks, .sequence_parallel = layout.sequence_parallel}),
      stage,
      {.context_attention = layout.attention}};
  return record(model, mesh.data(), o);
}

template <class G, Stage S, class P = Fp32, Device D>
Record train_on_mesh(const Comm& world, D& device, const Layout& layout, const RunOptions& o) {
  return train_on_mesh<G, P>(S, world, device, layout, o);
}

template <class G, Stage S, class P = Fp32>
Record train_on_mesh(const Comm& world, const Layout& layout, const RunOptions& o) {
  Cpu device;
  return train_on_mesh<G, P>(S, world, device, layout, o);
}

}  // namespace test
