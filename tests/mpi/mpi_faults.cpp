// SPDX-License-Identifier: Apache-2.0
// Run under mpirun, with the name of a fault: the last rank commits it; expect.sh looks at how all the others end.
#include <csignal>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <unistd.h>
#include <zeropp/comm/launch.hpp>

using namespace zeropp;

namespace {

using Fault = std::function<void(const Comm&, bool culprit)>;

void reduce(const Comm& comm, std::size_t count) {
  std::vector<float> data(count, 1.f);
  comm.all_reduce(std::span(data));
}

const std::map<std::string, Fault> faults{
    {"exception",
     [](const Comm& comm, bool culprit) {
       if (culprit) throw DataError("train.bin ends at byte 17");
       reduce(comm, 64);
     }},
    {"exit_code",
     [](const Comm& comm, bool culprit) {
       if (culprit) throw MemoryError("asked for 7 bytes");
       float data[1];
       comm.recv(comm.size() - 1, std::span<float>(data));
     }},
    {"kind",
     [](const Comm& comm, bool culprit) {
       std::vector<float> whole(64), part(static_cast<std::size_t>(64 / comm.size()));
       culprit ? reduce(comm, 64) : comm.all_gather(std::span<const float>(part), std::span(whole));
     }},
    {"count", [](const Comm& comm, bool culprit) { reduce(comm, culprit ? 65 : 64); }},
    {"large_count", [](const Comm& comm, bool culprit) { reduce(comm, culprit ? 64'000 : 640'000); }},
    {"dtype",
     [](const Comm& comm, bool culprit) {
       std::vector<double> data(64);
       culprit ? comm.all_reduce(std::span(data)) : reduce(comm, 64);
     }},
    {"pieces",
     [](const Comm& comm, bool culprit) {
       std::vector<float> a(64), b(64), part(64);
       const Piece pieces[] = {{a.data(), part.data(), culprit ? 40 : 24}, {b.data(), part.data(), culprit ? 24 : 40}};
       comm.reduce_scatter(DType::f32, pieces);
     }},
    {"order",
     [](const Comm& comm, bool culprit) {
       if (!culprit) comm.barrier();
       reduce(comm, 64);
       if (culprit) comm.barrier();
     }},
    {"all_to_all",
     [](const Comm& comm, bool culprit) {
       const auto ranks = static_cast<std::size_t>(comm.size());
       std::vector<float> in(ranks), out(ranks + culprit);
       std::vector<std::int64_t> send(ranks, 1), receive(ranks, 1);
       receive[0] += culprit;
       comm.all_to_all(std::span<const float>(in), send, std::span(out), receive);
     }},
    {"message",
     [](const Comm& comm, bool culprit) {
       std::vector<float> data(culprit ? 4 : 8);
       if (culprit) comm.send(0, std::span<const float>(data));
       if (comm.rank() == 0) comm.recv(comm.size() - 1, std::span(data));
     }},
    {"subset",
     [](const Comm& comm, bool culprit) {
       std::vector<int> members(static_cast<std::size_t>(comm.size()));
       for (int r = 0; r < comm.size(); ++r) members[static_cast<std::size_t>(r)] = r;
       if (culprit) std::swap(members[0], members[1]);
       comm.subset(members);
     }},
    {"group",
     [](const Comm& comm, bool culprit) {
       const Comm pair = comm.split(comm.rank() < comm.size() - 2, 0);
       reduce(pair, culprit ? 3 : 4);
       comm.barrier();
     }},
    {"returns",
     [](const Comm& comm, bool culprit) {
       if (!culprit) reduce(comm, 64);
     }},
    {"kill",
     [](const Comm& comm, bool culprit) {
       if (culprit) {
         usleep(200'000);  // the others have read all that it sent: a reset connection may take the rest away
         std::raise(SIGKILL);
       }
       reduce(comm, 64);
     }},
    {"stop",
     [](const Comm& comm, bool culprit) {
       if (culprit) std::raise(SIGSTOP);
       reduce(comm, 64);
     }},
    {"stop_in_data",  // after the fingerprints, while data is under way
     [](const Comm& comm, bool culprit) {
       std::vector<float> data(1 << 20);
       if (culprit) std::raise(SIGSTOP);
       comm.broadcast(std::span(data), 0);
       reduce(comm, 1 << 20);
     }},
    {"late",
     [](const Comm& comm, bool culprit) {
       if (culprit) sleep(8);
       comm.barrier();
     }},
    {"never_sent",
     [](const Comm& comm, bool culprit) {
       float data[4];
       if (!culprit && comm.rank() == 0) comm.recv(comm.size() - 1, std::span<float>(data));
     }},
    {"nothing", [](const Comm& comm, bool) { reduce(comm, 64); }},
};

}  // namespace

int main(int argc, char** argv) {
  const auto fault = argc > 1 ? faults.find(argv[1]) : faults.end();
  if (fault == faults.end()) {
    std::fprintf(stderr, "usage: mpi_faults NAME\n");
    return 2;
  }
  return launch({.limit = std::chrono::seconds(2)}, [&](World& world) {
    for (int i = 0; i < 3; ++i) reduce(world, 16);
    fault->second(world, world.rank == world.size - 1);
    // A rank that came through waits for the end like the others; the program must not end with 0.
  });
}
