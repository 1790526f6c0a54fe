// SPDX-License-Identifier: Apache-2.0
// Processes joined by TCP: every collective gives the bits of thread ranks, small and in many rounds; and many small
// operations in a row on a communicator and on halves of it.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <zeropp/comm/launch.hpp>

#include "../mpi/collectives.hpp"

using namespace zeropp;

namespace {

/// All types in small, and more than one round holds.
std::uint64_t all(const Comm& comm) {
  test::Hash hash;
  test::collectives_of<float>(comm, 2'300'001, hash);
  test::collectives_of<bf16>(comm, 1'000'003, hash);
  return test::collectives(comm) ^ hash.value();
}

}  // namespace

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    const Comm& comm = world;
    if (comm.name() != "TCP" || world.source != "torchrun" || world.local_rank != std::atoi(std::getenv("LOCAL_RANK")))
      throw Error("not the ranks of torchrun over TCP");
    const auto bits = all(comm);
    if (world.rank == 0)
      run_ranks(world.size, [&](Comm threads) {
        if (all(threads) != bits) throw Error(text(world.size, " processes and as many threads give different bits"));
      });

    const Comm half = comm.split(world.rank % 2, 0);
    for (int round = 0; round < 1000; ++round) {
      std::int64_t data[3] = {round, world.rank, 1};
      const Comm& group = round % 3 == 0 ? half : comm;
      group.all_reduce(std::span<std::int64_t>(data));
      if (data[0] != group.size() * round || data[2] != group.size()) throw Error(text("wrong sum in round ", round));
      const int to = (world.rank + 1) % world.size, from = (world.rank + world.size - 1) % world.size;
      comm.send(to, std::span<const std::int64_t>(data));
      std::int64_t got[3];
      comm.recv(from, std::span<std::int64_t>(got));
      if (round % 3 && got[1] != data[1]) throw Error(text("wrong message in round ", round));
    }
    if (world.rank == 0) std::printf("%d TCP ranks give the bits of threads\n", world.size);
  });
}
