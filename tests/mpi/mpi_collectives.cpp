// SPDX-License-Identifier: Apache-2.0
// Run under mpirun: every collective on MPI ranks, with and without fingerprints, gives the bits of thread ranks.
#include <cstdio>
#include <vector>

#include <zeropp/comm/launch.hpp>

#include "collectives.hpp"

using namespace zeropp;

namespace {

/// More than one step of a reduce_scatter and more than one message of an all_gather would hold.
std::uint64_t large(const Comm& comm, test::Hash hash) {
  test::collectives_of<float>(comm, 3'000'001, hash);
  test::collectives_of<bf16>(comm, 5'000'003, hash);
  return hash.value();
}

void expect_threads_bits(const Comm& comm, const char* what) {
  const auto small_bits = test::collectives(comm), large_bits = large(comm, {});
  if (comm.rank() != 0) return;
  const auto on_threads = [&](Comm threads) {
    const auto thread_small_bits = test::collectives(threads), thread_large_bits = large(threads, {});
    if (threads.rank() == 0 && (thread_small_bits != small_bits || thread_large_bits != large_bits))
      throw Error(text(what, ": ", comm.size(), " MPI ranks and as many threads give different bits"));
  };
  run_ranks(comm.size(), on_threads);
  std::printf("%s: %d MPI ranks give the bits of threads: %016llx\n", what, comm.size(),
              static_cast<unsigned long long>(small_bits));
}

}  // namespace

int main(int argc, char** argv) {
  return launch(argc, argv, [](World& world) {
    expect_threads_bits(world, "launch");
    test::pending(world);
    if (world.size == 1) return;
    for (const bool compare : {true, false})
      expect_threads_bits(mpi_comm(MPI_COMM_WORLD, {.checked = compare, .limit = std::chrono::seconds(60)}),
                          compare ? "checked" : "unchecked");

    // Ten thousand rounds on a communicator and on halves of it, messages in between.
    const Comm half = world.comm.split(world.rank % 2, 0);
    for (int round = 0; round < 2000; ++round) {
      std::int64_t data[3] = {round, world.rank, 1};
      const Comm& comm = round % 3 == 0 ? half : world.comm;
      comm.all_reduce(std::span<std::int64_t>(data));
      if (data[0] != comm.size() * round || data[2] != comm.size()) throw Error(text("wrong sum in round ", round));
      const int to = (world.rank + 1) % world.size, from = (world.rank + world.size - 1) % world.size;
      world.comm.send(to, std::span<const std::int64_t>(data));
      std::int64_t got[3];
      world.comm.recv(from, std::span<std::int64_t>(got));
      if (round % 3 && got[1] != data[1]) throw Error(text("wrong message in round ", round));
    }
  });
}
