// SPDX-License-Identifier: Apache-2.0
// Tensor x pipeline x data x context under mpirun: the bytes of losses and norms are those of as many thread ranks.
#include <cstdio>

#include <zeropp/comm/launch.hpp>

#include "../support/mesh_gpt.hpp"

using namespace test;

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    const auto o = mesh_options();
    int wrong = 0;
    for (const Layout& layout :
         {Layout{.data = 1, .tensor = 2, .pipeline = 2}, Layout{.data = 2, .tensor = 2, .sequence_parallel = true},
          Layout{.data = 2, .pipeline = 2, .schedule = PipelineKind::zb_v, .chunks = 2},
          Layout{.pipeline = 4, .schedule = PipelineKind::zb_h1}, Layout{.context = 4},
          Layout{.tensor = 2, .sequence_parallel = true, .context = 2, .attention = ContextAttention::ring},
          Layout{.data = 2, .context = 2, .attention = ContextAttention::ring}}) {
      std::string threads;
      if (world.rank == 0)
        run_ranks(layout.ranks(), {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
          const auto steps = train_on_mesh<Plain, Stage::none>(comm, layout, o).steps;
          if (comm.rank() == 0) threads = steps;
        });
      const auto mine = train_on_mesh<Recomputed, Stage::parameters>(world.comm, layout, o).steps;
      if (world.rank == 0 && mine != threads) {
        std::printf("%d data x %d tensor x %d pipeline x %d context ranks: other bytes than on threads\n", layout.data,
                    layout.tensor, layout.pipeline, layout.context);
        ++wrong;
      }
    }
    const Layout in_half{.data = 1, .tensor = 2, .pipeline = 2};  // sums of activations in f16
    std::string threads;
    if (world.rank == 0)
      run_ranks(in_half.ranks(), {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
        const auto steps = train_on_mesh<Plain, Stage::none, Fp16>(comm, in_half, o).steps;
        if (comm.rank() == 0) threads = steps;
      });
    if (const auto mine = train_on_mesh<Plain, Stage::none, Fp16>(world.comm, in_half, o).steps;
        world.rank == 0 && mine != threads) {
      std::printf("tensor x pipeline ranks in fp16: other bytes than on threads\n");
      ++wrong;
    }
    if (world.rank == 0 && !wrong) std::printf("the bytes of %d thread ranks\n", world.size);
    return wrong ? 1 : 0;
  });
}
