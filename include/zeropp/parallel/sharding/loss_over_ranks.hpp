// SPDX-License-Identifier: Apache-2.0
// The loss of a step over all ranks.
#pragma once

#include <span>

#include <zeropp/comm/comm.hpp>
#include <zeropp/layers/loss.hpp>

namespace zeropp::detail {

/// Σ over the ranks of `comm` of what each found; of a pipeline only the last stage has any, and sends it to the
/// others. With one rank in all it is `mine`: whoever reads it waits for it. A collective.
inline Loss loss_over_ranks(const Loss& mine, const Comm& comm, const Comm& pipeline, int last_stage) {
  if (comm.size() == 1 && pipeline.size() == 1) return mine;
  double sum = comm.sum(mine.sum());
  auto count = comm.sum(mine.count());
  if (pipeline.size() > 1) {
    pipeline.host().broadcast(std::span<double>{&sum, 1}, last_stage);
    pipeline.host().broadcast(std::span<std::int64_t>{&count, 1}, last_stage);
  }
  Loss all;
  all.add(sum, count);
  return all;
}

}  // namespace zeropp::detail
