// SPDX-License-Identifier: Apache-2.0
// The state that all groups of one MPI process share, and the exchange of fingerprints by which ranks find that they
// disagree.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <zeropp/base/version.hpp>
#include <zeropp/comm/fingerprint.hpp>
#include <zeropp/comm/mpi/requests.hpp>

namespace zeropp {

struct MpiOptions {
  /// Compare what the ranks call before every collective: a small message to every other rank. Without, ranks that
  /// disagree are found by the size of a message, or by the limit.
  bool checked = zeropp::checked;
  /// How long a rank waits without any answer before it names the ranks it waits for.
  std::chrono::nanoseconds limit = std::chrono::seconds(300);
};

namespace detail {

/// A message that its receiver has not taken yet; it owns its copy of the data.
struct MpiSend {
  struct Header {
    std::int64_t count;
    std::int32_t dtype, unused;
  } header;
  std::vector<std::byte> data;
  MpiRequests requests;
};

struct MpiShared : MpiState {
  std::vector<std::unique_ptr<MpiSend>> sends;

  explicit MpiShared(const MpiOptions& options) : MpiState{options.checked, checked_limit(options.limit)} {}
  MpiShared(const MpiShared&) = delete;
  MpiShared& operator=(const MpiShared&) = delete;
  ~MpiShared() {
    for (auto& send : sends)
      if (!send->requests.empty()) static_cast<void>(send.release());  // MPI may still read it
  }
};

/// How the ranks of `comm` are numbered in MPI_COMM_WORLD: sentences call them so in every group.
inline std::vector<int> ranks_in_world(MPI_Comm comm) {
  int size = 0;
  mpi_check(MPI_Comm_size(comm, &size), "number of ranks");
  std::vector<int> ranks(static_cast<std::size_t>(size)), world(ranks.size());
  for (int r = 0; r < size; ++r) ranks[static_cast<std::size_t>(r)] = r;
  MPI_Group here, everywhere;
  mpi_check(MPI_Comm_group(comm, &here), "group of the communicator");
  mpi_check(MPI_Comm_group(MPI_COMM_WORLD, &everywhere), "group of the world");
  mpi_check(MPI_Group_translate_ranks(here, size, ranks.data(), everywhere, world.data()), "names of the ranks");
  mpi_check(MPI_Group_free(&here), "group of the communicator");
  mpi_check(MPI_Group_free(&everywhere), "group of the world");
  return world;
}

/// Who shows fingerprints to whom: `members` of the ranks of `comm`, of which this one is `rank`.
struct MpiCircle {
  MPI_Comm comm;
  int rank, tag;
  const std::vector<int>& world_ranks;
  std::span<const int> members;
};

/// Every member shows every other what it calls; returns what each of them showed. Throws CommError where they differ.
inline std::vector<Fingerprint> exchange(const MpiState& state, const MpiCircle& circle, const std::string& call,
                                         const Fingerprint& mine, std::span<const std::int64_t> send_bytes) {
  const auto members = circle.members;
  std::vector<int> names;
  for (int member : members) names.push_back(circle.world_ranks[static_cast<std::size_t>(member)]);
  std::vector<Fingerprint> out(members.size(), mine), in(members.size());
  MpiRequests requests(circle.comm, circle.world_ranks, names);
  for (std::size_t m = 0; m < members.size(); ++m) {
    if (!send_bytes.empty()) out[m].bytes = send_bytes[m];
    if (members[m] == circle.rank) {
      in[m] = out[m];
      continue;
    }
    requests.receive(&in[m], sizeof in[m], members[m], circle.tag);
    requests.send(&out[m], sizeof out[m], members[m], circle.tag);
  }
  requests.wait(state, circle.world_ranks[static_cast<std::size_t>(circle.rank)], call);
  // All see the same fingerprints and come to the same verdict; the first member speaks for all.
  for (std::size_t m = 1; m < members.size(); ++m) {
    if (in[m].same_call(in[0])) continue;
    const auto sentence = differ_text(names[0], in[0].describe(in[m], circle.world_ranks), names[m],
                                      in[m].describe(in[0], circle.world_ranks));
    if (members[0] != circle.rank) throw ReportedElsewhere(sentence);
    throw CommError(sentence);
  }
  return in;
}

}  // namespace detail
}  // namespace zeropp
