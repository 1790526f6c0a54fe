// SPDX-License-Identifier: Apache-2.0
// One body on every rank, whatever started them: threads of this process (`--ranks N`); in a program that links
// zeropp::tcp, processes of torchrun, srun or anything else that says RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
// joined by TCP (comm/tcp/place.hpp); in one that links zeropp::mpi, those of mpirun, or of srun with MPI. Errors end
// in one sentence and an exit code.
//
//   int main(int argc, char** argv) {
//     return launch(argc, argv, [](World& world) { ... world.comm.all_reduce(data); ... });
//   }
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include <zeropp/comm/comm.hpp>
#include <zeropp/comm/ranks.hpp>
#include <zeropp/comm/report.hpp>
#include <zeropp/comm/threads/threads.hpp>
#include <zeropp/comm/world.hpp>
#ifdef ZEROPP_MPI
#include <zeropp/comm/mpi/launch.hpp>
#endif
#ifdef ZEROPP_TCP
#include <zeropp/comm/tcp/launch.hpp>
#endif

namespace zeropp {

struct LaunchOptions {
  int ranks = 0;  ///< threads of this process; 0: what the environment says, else one rank
  /// How long a rank waits for the others in one operation before it names them and all end.
  std::chrono::nanoseconds limit = std::chrono::seconds(300);
};

/// Opens /dev/null where a program was started with a standard descriptor closed: its first file or socket would get
/// the number, and then hold what is printed. `launch` does so before anything else.
inline void hold_standard_descriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor)
    if (::fcntl(descriptor, F_GETFD) < 0) (void)::open("/dev/null", O_RDWR);  // the lowest number that is free
}

/// Ranks as threads beyond this are refused: their start alone would take minutes.
inline constexpr int most_thread_ranks = 4096;

namespace detail {

/// Runs a body that returns nothing, or an exit code of its own.
template <class Body>
int exit_code_of(const Body& body, World& world) {
  if constexpr (std::is_void_v<std::invoke_result_t<const Body&, World&>>) {
    body(world);
    return 0;
  } else {
    return body(world);
  }
}

template <class Body>
int launch_threads(int ranks, std::chrono::nanoseconds limit, const std::string& source, const Body& body) {
  ThreadGroup group{ranks, {.limit = limit}};
  const auto rank_body = [&](Comm comm) {
    World world{comm, comm.rank(), ranks, comm.rank(), source};
    return exit_code_of(body, world);
  };
  if (ranks == 1) return rank_body(group.comm(0));
  std::vector<int> codes(static_cast<std::size_t>(ranks), 0);
  group.run([&](Comm comm) { codes[static_cast<std::size_t>(comm.rank())] = rank_body(comm); },
            [&] {
              // A thread cannot be ended from outside: a rank that does not come back would keep the program for ever.
              try {
                group.rethrow_first_error();
              } catch (...) {
                const int code = report_current_exception();
                std::fprintf(stderr, "error: a rank has not ended %s later; ending the process\n",
                             seconds_text(limit).c_str());
                std::_Exit(code);
              }
            });
  for (int code : codes)
    if (code != 0) return code;
  return 0;
}

/// `--ranks N` or `--ranks=N` among the arguments; 0 without. Everything else belongs to the caller.
inline int ranks_in_arguments(int argc, const char* const* argv) {
  int ranks = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--") break;
    std::string_view value;
    if (argument.starts_with("--ranks="))
      value = argument.substr(8);
    else if (argument == "--ranks")
      value = i + 1 < argc ? argv[++i] : "";
    else
      continue;
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), ranks);
    if (error != std::errc{} || stop != value.data() + value.size() || ranks < 1)
      throw ConfigError(text("--ranks needs a number of 1 or more, got \"", value, "\""));
  }
  return ranks;
}

template <class Body>
int launch_ranks(const LaunchOptions& options, const Body& body) {
  const auto found = ranks_in_environment();
  if (options.ranks < 0) throw ConfigError(text("launch needs 1 rank or more, got ", options.ranks));
  if (found.size == 1) {
    const int ranks = options.ranks == 0 ? 1 : options.ranks;
    if (ranks > most_thread_ranks)
      throw ConfigError(text("--ranks ", ranks, " asks for more threads than the ", most_thread_ranks,
                             " that a process may have as ranks; start processes, with torchrun, srun or mpirun"));
    return launch_threads(ranks, options.limit, options.ranks == 0 ? found.source : text("--ranks ", ranks), body);
  }
  const auto started = text(found.source, " started this process as rank ", found.rank,
                            found.size ? text(" of ", found.size) : std::string{});
  if (options.ranks != 0)
    throw ConfigError(text("--ranks ", options.ranks, " asks for threads of one process, but ", started,
                           "; leave out --ranks, or start one process"));
  [[maybe_unused]] const auto on_rank = [&](Comm comm, int local_rank) {
    World world{comm, comm.rank(), comm.size(), local_rank, found.source};
    return exit_code_of(body, world);
  };
#ifdef ZEROPP_MPI
  if (mpi_runs() || started_by_mpi()) return mpi_launch(found, options.limit, on_rank);
#else
  // srun says by itself where rank 0 is; mpirun may be told to.
  if (found.size == 0 || (started_by_mpi() && found.source != "srun" && !std::getenv("MASTER_ADDR")))
    throw ConfigError(text(started,
                           ", but this program was built without MPI; link zeropp::mpi, or give it MASTER_ADDR and "
                           "MASTER_PORT as torchrun does, or use --ranks N for threads of one process"));
#endif
#ifdef ZEROPP_TCP
  return tcp_launch(found, options.limit, [&](Comm comm) { return on_rank(comm, found.local_rank); });
#else
  throw ConfigError(text(started,
                         ", but this program was built without ranks as processes: link zeropp::tcp (or define "
                         "ZEROPP_TCP for all of it), or use --ranks N for threads of one process"));
#endif
}

}  // namespace detail

/// Runs body(world) on every rank and returns the exit code of the program: 0, what the body returned if it returns an
/// int (the first that is not 0), or that of the error (Error::exit_code(); 3 for std::bad_alloc, 1 for other ones),
/// whose sentence, rank and place are printed on stderr, once.
template <class Body>
int launch(const LaunchOptions& options, const Body& body) {
  hold_standard_descriptors();
  try {
    return detail::launch_ranks(options, body);
  } catch (...) {
    return detail::report_current_exception();
  }
}

/// The same, with the number of thread ranks from `--ranks N` among the arguments.
template <class Body>
int launch(int argc, const char* const* argv, const Body& body) {
  LaunchOptions options;
  try {
    options.ranks = detail::ranks_in_arguments(argc, argv);
  } catch (...) {
    return detail::report_current_exception();
  }
  return launch(options, body);
}

}  // namespace zeropp

#ifdef ZEROPP_CUDA
#include <zeropp/comm/cuda/gpu_of.hpp>
#endif
