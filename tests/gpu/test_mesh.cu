// SPDX-License-Identifier: Apache-2.0
// Tensor, pipeline, context and data ranks on GPUs, by themselves and together: the losses of one rank on the CPU, and
// the same bits over stages and with recompute. On ranks that share a GPU, and over NCCL on as many GPUs as there are.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/train/clip.hpp>

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

TEST_CASE("ranks on GPUs that clip to different norms, or were given different batches, are refused") {
  const auto o = options();
  for (auto [layout, different] : {std::pair{Layout{.data = 2}, "norm"},
                                   {Layout{.tensor = 2}, "norm"},
                                   {Layout{.pipeline = 2}, "norm"},
                                   {Layout{.tensor = 2}, "batch"},
                                   {Layout{.pipeline = 2}, "batch"}}) {
    const bool batches = different == std::string("batch");
    std::string sentence;
    try {
      run_ranks(2, {.limit = std::chrono::seconds(60)}, [&, layout = layout](Comm comm) {
        Cuda gpu{{.ordinal = comm.rank() % cuda_devices(), .shared = comm.size() > cuda_devices()}};
        const Mesh mesh{comm, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline}};
        ShardedEngine<Parallel<Plain>, Fp32, Cuda> model{mesh, gpu, parallelize(mesh, Plain{o.config}), Stage::none};
        FusedAdam adam{model};
        auto batch = Batch::on(gpu, 4, o.config.sequence);
        const std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size()),
                                               batches ? comm.rank() : 1);
        batch.fill(tokens, tokens);
        model.train(batch, {.micro_batches = 2});
        const auto clip = clip_by_global_norm(model, comm.rank() && !batches ? 2.0f : 1.0f);
        adam.step(1e-2f, clip);  // enqueued, and changes nothing where ranks disagree
        (void)clip.norm();
      });
    } catch (const CommError& e) {
      sentence = e.what();
    }
    CHECK(sentence.find(batches ? "rank 1 was given another batch" : "were given different arguments") !=
          std::string::npos);
  }
}
