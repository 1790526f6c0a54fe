// SPDX-License-Identifier: Apache-2.0
// Tensor, pipeline, context and data ranks on GPUs, by themselves and together: the losses of one rank on the CPU, and
// the same bits over stages and with recompute. On ranks that share a GPU, and over NCCL on as many GPUs as there are.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/cuda.hpp>

#include "../support/apart.hpp"
#include "../support/mesh_gpt.hpp"

using namespace zeropp;
using namespace test;

namespace {

constexpr PipelineKind zb_h1 = PipelineKind::zb_h1;

RunOptions options() {
  auto o = mesh_options();
  o.steps = 3;
  return o;
}

/// The bytes of losses and norms; ranks take the GPUs in turn.
template <class G, Stage S, class P = Fp32>
std::string steps_of(const Layout& layout) {
  std::string bytes;
  run_ranks(layout.ranks(), {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
    Cuda gpu{{.ordinal = comm.rank() % cuda_devices(), .shared = comm.size() > cuda_devices()}};
    const auto mine = train_on_mesh<G, S, P>(comm, gpu, layout, options()).steps;
    if (comm.rank() == 0) bytes = mine;
  });
  return bytes;
}

void check(const Layout& layout) {
  CAPTURE(layout.data);
  CAPTURE(layout.tensor);
  CAPTURE(layout.pipeline);
  CAPTURE(layout.context);
  static const auto one = train_on_mesh<Plain, Stage::none>(Comm{}, {}, options()).steps;  // on the CPU
  const auto whole = steps_of<Plain, Stage::none>(layout);
  CHECK(apart(whole, one) < 1e-5);
  CHECK(steps_of<Recomputed, Stage::gradients>(layout) == whole);
  CHECK(steps_of<Recomputed, Stage::parameters>(layout) == whole);
}

}  // namespace

TEST_CASE("meshes of 2, 4 and 8 ranks: one rank's losses, and the same bits at every stage") {
  check({.data = 2});
  check({.tensor = 2});
  check({.tensor = 2, .sequence_parallel = true});
  check({.pipeline = 2, .schedule = zb_h1});
  check({.context = 2});
  check({.tensor = 2, .pipeline = 2});
  check({.data = 2, .tensor = 2, .sequence_parallel = true});
  check({.data = 2, .pipeline = 2});
  check({.data = 2, .tensor = 2, .pipeline = 2, .schedule = zb_h1});
}

TEST_CASE("a pipeline on GPUs has the bits of none, whatever its schedule") {
  const auto one = steps_of<Plain, Stage::none>({});
  for (auto [kind, chunks] : {std::pair{PipelineKind::gpipe, 1},
                              {PipelineKind::one_forward_one_backward, 1},
                              {PipelineKind::interleaved, 2},
                              {PipelineKind::zb_v, 2}})
    CHECK(steps_of<Recomputed, Stage::parameters>({.pipeline = 2, .schedule = kind, .chunks = chunks}) == one);
}
