// SPDX-License-Identifier: Apache-2.0
// The model and the mesh of a mesh.json, as settings of mini_gpt.
#pragma once

#include <zeropp/app/config/simulate_config.hpp>

#include "plan.hpp"

namespace mini_gpt {

inline Settings settings_of(const SimulationFile& file) {
  Settings s;
  s.model = {.n_layer = file.model.layers,
             .n_head = file.model.heads,
             .n_embd = file.model.width,
             .block_size = file.model.sequence,
             .vocabulary = file.model.vocabulary,
             .recompute_blocks = file.recompute ? file.model.layers : 0};
  s.zero = file.stage, s.recompute = file.recompute, s.sequence_parallel = file.sequence_parallel;
  s.pipeline_schedule = name_of(file.schedule), s.chunks = file.chunks;
  return s;
}

}  // namespace mini_gpt
