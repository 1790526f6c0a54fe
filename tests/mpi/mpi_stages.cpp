// SPDX-License-Identifier: Apache-2.0
// Training under mpirun: the bytes of losses, norms and weights are those of as many thread ranks, over stages,
// micro-batches and recompute; in fp16 too.
#include <cstdio>

#include <zeropp/comm/launch.hpp>

#include "../support/tiny_gpt.hpp"

using namespace test;

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    int wrong = 0;
    const auto half = [](const Comm& comm) {
      return train<Plain, Stage::gradients, Fp16>(comm, {.micro_batches = 2, .loss_scale = 1024});
    };
    std::string half_on_threads;
    if (world.rank == 0)
      run_ranks(world.size, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
        const auto bytes = half(comm);
        if (comm.rank() == 0) half_on_threads = bytes;
      });
    if (const auto mine = half(world.comm); world.rank == 0 && mine != half_on_threads) {
      std::printf("%d ranks in fp16: other bytes than on threads\n", world.size);
      ++wrong;
    }
    for (std::int64_t micro_batches : {1, 3}) {
      std::string threads;
      if (world.rank == 0)
        run_ranks(world.size, {.limit = std::chrono::seconds(60)}, [&](Comm comm) {
          const auto bytes = train<Plain>(Stage::none, comm, {.micro_batches = micro_batches});
          if (comm.rank() == 0) threads = bytes;
        });
      for (auto stage : all_stages) {
        const bool plain = train<Plain>(stage, world.comm, {.micro_batches = micro_batches}) == threads;
        const bool recomputed = train<Recomputed>(stage, world.comm, {.micro_batches = micro_batches}) == threads;
        if (world.rank == 0 && !(plain && recomputed)) {
          std::printf("%d ranks, %d micro-batches, stage %d: other bytes than on threads\n", world.size,
                      static_cast<int>(micro_batches), static_cast<int>(stage));
          ++wrong;
        }
      }
    }
    if (world.rank == 0 && !wrong) std::printf("the bytes of %d thread ranks\n", world.size);
    return wrong ? 1 : 0;
  });
}
