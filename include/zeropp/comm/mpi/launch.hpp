// SPDX-License-Identifier: Apache-2.0
// A program's rank under MPI: start, the body, and an end for all ranks where one fails.
#pragma once

#include <mpi.h>

#include <string>

#include <zeropp/comm/mpi/mpi.hpp>
#include <zeropp/comm/ranks.hpp>
#include <zeropp/comm/report.hpp>

namespace zeropp::detail {

/// Ranks of MPI, started and ended here unless the program had started it before.
class MpiSession {
 public:
  MpiSession() {
    int started = 0;
    MPI_Initialized(&started);
    if (started) return;
    int provided = 0;
    mpi_check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "starting MPI");
    owner_ = true;
  }
  ~MpiSession() {
    if (owner_ && mpi_runs()) MPI_Finalize();
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  bool owner_ = false;
};

/// Throws ConfigError unless MPI counts the ranks as the environment does.
inline void expect_ranks(const RankInfo& found, int rank, int size) {
  if ((found.size == 0 || found.size == size) && found.rank == rank) return;
  throw ConfigError(text(found.source, " says rank ", found.rank, found.size ? text(" of ", found.size) : "",
                         ", but MPI says rank ", rank, " of ", size,
                         "; start the program with the mpirun or srun of the MPI it was built with"));
}

/// Runs body(comm, local_rank), which returns an exit code, on this process' rank. An error is printed with the rank,
/// and ends all ranks.
template <class Body>
int mpi_launch(const RankInfo& found, std::chrono::nanoseconds limit, const Body& body) {
  MpiSession session;
  int rank = found.rank, code = 0;
  const auto abort = [&] {
    code = report_current_exception(rank);
    MPI_Abort(MPI_COMM_WORLD, code);
  };
  try {
    int size = 0, local_rank = 0;
    mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "asking MPI to report errors");
    mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "rank of this process");
    mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size), "number of ranks");
    expect_ranks(found, rank, size);
    MPI_Comm host;
    mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host),
              "ranks of this host");
    mpi_check(MPI_Comm_rank(host, &local_rank), "rank on this host");
    mpi_check(MPI_Comm_free(&host), "ranks of this host");

    const auto backend = std::make_shared<MpiBackend>(MPI_COMM_WORLD, MpiOptions{.limit = limit});
    code = body(size == 1 ? Comm{} : Comm{backend}, local_rank);
    backend->finish();
  } catch (const ReportedElsewhere&) {
    // Another rank prints the same sentence and ends this one; if it does not, this one does.
    std::this_thread::sleep_for(std::chrono::seconds(1));
    abort();
  } catch (...) {
    abort();
  }
  return code;
}

}  // namespace zeropp::detail
