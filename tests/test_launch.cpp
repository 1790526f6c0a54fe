// SPDX-License-Identifier: Apache-2.0
// How a process learns its rank, and how a program ends: exit codes, one sentence on stderr, nothing that hangs; signals.
#include <fcntl.h>

#include <csignal>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zeropp/app/interrupt.hpp>
#include <zeropp/comm/launch.hpp>

using namespace zeropp;
using namespace std::chrono_literals;

namespace {

bool contains(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }

using Table = std::map<std::string, std::string>;

RankInfo found_in(const Table& table) {
  return ranks_in_environment([&](const char* name) -> const char* {
    const auto at = table.find(name);
    return at == table.end() ? nullptr : at->second.c_str();
  });
}
std::string refused(const Table& table) {
  try {
    const auto found = found_in(table);
    return text("accepted: ", found.rank, " of ", found.size, " by ", found.source);
  } catch (const ConfigError& e) {
    return e.what();
  }
}

struct Ended {
  int code;  // 128 + signal after a signal
  std::string error;
};
/// Runs f in a process of its own, with `environment` and with stderr kept.
template <class F>
Ended in_process(const F& f, const Table& environment = {}) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  std::fflush(nullptr);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    for (const char* name :
         {"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
          "PMIX_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT", "ZEROPP_PORT"})
      unsetenv(name);
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    for (int number : {SIGINT, SIGTERM, SIGHUP}) std::signal(number, SIG_DFL);  // not doctest's
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    alarm(20);
    _exit(f());
  }
  close(ends[1]);
  Ended ended{};
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
    ended.error.append(buffer, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ended;
}

int launch_with(std::vector<const char*> arguments, const std::function<void(World&)>& body) {
  arguments.insert(arguments.begin(), "program");
  arguments.push_back(nullptr);
  return launch(static_cast<int>(arguments.size()) - 1, arguments.data(), body);
}

}  // namespace

TEST_CASE("which rank this process is, by launcher") {
  struct Case {
    Table table;
    int rank, size, local_rank;
    std::string source;
  };
  const Case cases[] = {
      {{}, 0, 1, 0, "one process"},
      {{{"RANK", "3"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "a"}}, 3, 8, 1, "torchrun"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "1"}}, 0, 1, 0, "torchrun"},
      {{{"OMPI_COMM_WORLD_RANK", "2"},
        {"OMPI_COMM_WORLD_SIZE", "4"},
        {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
        {"PMIX_RANK", "2"}},
       2,
       4,
       0,
       "mpirun (Open MPI)"},
      {{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}}, 1, 2, 1, "mpirun (PMI)"},
      {{{"SLURM_PROCID", "5"},
        {"SLURM_NTASKS", "6"},
        {"SLURM_LOCALID", "2"},
        {"SLURM_STEP_ID", "0"},
        {"PMIX_RANK", "5"}},
       5,
       6,
       2,
       "srun"},
      {{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}, {"SLURM_STEP_ID", "3"}}, 0, 1, 0, "one process"},
      {{{"SLURM_NTASKS", "6"}}, 0, 1, 0, "one process"},                          // a shell of an allocation
      {{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "6"}}, 0, 1, 0, "one process"},  // the script of sbatch
      {{{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "6"}, {"SLURM_STEP_ID", "4294967290"}}, 0, 1, 0, "one process"},
      // torchrun, started by srun once a host
      {{{"RANK", "9"}, {"WORLD_SIZE", "16"}, {"LOCAL_RANK", "1"}, {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}},
       9,
       16,
       1,
       "torchrun"},
      {{{"PMIX_RANK", "2"}}, 2, 0, 2, "PMIx"},
  };
  for (const auto& one : cases) {
    const auto found = found_in(one.table);
    CAPTURE(one.source);
    CHECK(found.rank == one.rank);
    CHECK(found.size == one.size);
    CHECK(found.local_rank == one.local_rank);
    CHECK(found.source == one.source);
  }
}

TEST_CASE("half-set, contradicting and impossible values are refused by name") {
  CHECK(refused({{"RANK", "1"}}) == "RANK is set but WORLD_SIZE is not; set both (torchrun does) or neither");
  CHECK(refused({{"WORLD_SIZE", "2"}}) == "WORLD_SIZE is set but RANK is not; set both (torchrun does) or neither");
  CHECK(contains(refused({{"OMPI_COMM_WORLD_SIZE", "2"}}), "OMPI_COMM_WORLD_SIZE is set but OMPI_COMM_WORLD_RANK"));
  CHECK(contains(refused({{"RANK", "2"}, {"WORLD_SIZE", "2"}}), "RANK=2 is not below WORLD_SIZE=2"));
  CHECK(contains(refused({{"RANK", "one"}, {"WORLD_SIZE", "2"}}), "RANK=one is not a number"));
  CHECK(contains(refused({{"RANK", "1 "}, {"WORLD_SIZE", "2"}}), "is not a number"));
  CHECK(contains(refused({{"RANK", ""}, {"WORLD_SIZE", "2"}}), "RANK= is not a number"));
  CHECK(contains(refused({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}), "RANK=-1 is not a number of 0 or more"));
  CHECK(contains(refused({{"RANK", "0"}, {"WORLD_SIZE", "99999999999"}}), "WORLD_SIZE=99999999999 is not a number"));
  CHECK(refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}) ==
        "torchrun says rank 0 of 2, mpirun (PMI) says rank 1 of 2; unset the variables of one of them");
  CHECK(contains(refused({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"PMIX_RANK", "0"}}), "PMIX_RANK says 0"));
}

TEST_CASE("threads: every rank has its number, and the source is told") {
  std::atomic<int> seen{0};
  const auto body = [&](World& world) {
    seen += 1 << world.rank;
    CHECK(world.size == 3);
    CHECK(world.local_rank == world.rank);
    CHECK(world.source == "--ranks 3");
    const Comm& comm = world;
    CHECK(comm.rank() == world.rank);
    std::int32_t one[1] = {1};
    comm.all_reduce(std::span<std::int32_t>(one));
    CHECK(one[0] == 3);
  };
  CHECK(launch_with({"--data", "x", "--ranks", "3"}, body) == 0);
  CHECK(seen == 7);
  CHECK(launch_with({"--ranks=3", "--", "--ranks", "9"}, body) == 0);
  CHECK(launch({.ranks = 3, .limit = 5s}, body) == 0);
  const auto alone = [](World& world) {
    CHECK(world.size == 1);
    CHECK(world.source == "one process");
  };
  CHECK(launch({}, alone) == 0);
}

TEST_CASE("a body may return its exit code: the first that is not 0 counts") {
  CHECK(launch({.ranks = 4}, [](World& world) { return world.rank < 2 ? 0 : 100 + world.rank; }) == 102);
  CHECK(launch({}, [](World&) { return 143; }) == 143);
}

TEST_CASE("errors become exit codes and one sentence with rank and place") {
  struct Case {
    std::function<void()> fail;
    int code;
    std::string sentence;
  };
  const Case cases[] = {{[] { throw ConfigError("no such key"); }, 2, "no such key"},
                        {[] { throw MemoryError("too much"); }, 3, "too much"},
                        {[] { throw std::bad_alloc(); }, 3, "out of host memory"},
                        {[] { throw DataError("torn file"); }, 4, "torn file"},
                        {[] { throw CommError("lost"); }, 5, "lost"},
                        {[] { throw Error("plain"); }, 1, "plain"},
                        {[] { throw std::runtime_error("odd"); }, 1, "odd"},
                        {[] { throw 7; }, 1, "an exception that is no std::exception"}};
  for (const auto& one : cases)
    for (const int ranks : {1, 3}) {
      CAPTURE(one.sentence);
      const auto ended = in_process([&] {
        return launch({.ranks = ranks, .limit = 10s}, [&](World& world) {
          if (world.rank == ranks - 1) one.fail();
          world.comm.barrier();
        });
      });
      CHECK(ended.code == one.code);
      const bool names_rank = ranks == 3 && one.sentence.find("no std::exception") == std::string::npos;
      CHECK(contains(ended.error, text("error: ", names_rank ? "rank 2: " : "", one.sentence)));
      CHECK(ended.error.find("error:") == ended.error.rfind("error:"));
      if (one.code == 4) CHECK(contains(ended.error, "test_launch.cpp:"));
    }
}

TEST_CASE("wrong arguments and wrong environments end with exit code 2") {
  const auto nothing = [](World&) {};
  for (const char* value : {"0", "-1", "x", "2x", "", "99999999999"}) {
    const auto ended = in_process([&] { return launch_with({"--ranks", value}, nothing); });
    CHECK(ended.code == 2);
    CHECK(contains(ended.error, text("--ranks needs a number of 1 or more, got \"", value, "\"")));
  }
  CHECK(in_process([&] { return launch_with({"--ranks"}, nothing); }).code == 2);
  CHECK(in_process([&] { return launch({.ranks = -1}, nothing); }).code == 2);
  for (const int ranks : {4097, 100000, std::numeric_limits<int>::max()}) {
    const auto many = in_process([&] { return launch({.ranks = ranks}, nothing); });
    CHECK(many.code == 2);
    CHECK(contains(many.error, text("--ranks ", ranks, " asks for more threads than the 4096")));
  }
  auto ended = in_process([&] { return launch({}, nothing); }, {{"RANK", "0"}});
  CHECK(ended.code == 2);
  CHECK(contains(ended.error, "WORLD_SIZE is not"));
  ended = in_process([&] { return launch_with({"--ranks", "2"}, nothing); }, {{"RANK", "1"}, {"WORLD_SIZE", "4"}});
  CHECK(ended.code == 2);
  CHECK(contains(ended.error,
                 "--ranks 2 asks for threads of one process, but torchrun started this process as rank 1 "
                 "of 4"));
  // mpirun -n 1 is one process like any other
  CHECK(in_process(
            [&] {
              return launch_with({"--ranks", "2"}, nothing);
            },
            {{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}})
            .code == 0);
  ended = in_process([&] { return launch({}, nothing); }, {{"RANK", "1"}, {"WORLD_SIZE", "4"}});
  CHECK(ended.code == 2);
  CHECK(contains(ended.error, "torchrun started this process as rank 1 of 4, but MASTER_ADDR is not set"));
  const auto taken = detail::listen_at({"127.0.0.1", 0}, 1, "");
  const auto port = text(detail::own_address(taken).port);
  ended = in_process([&] { return launch({}, nothing); },
                     {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"ZEROPP_PORT", port}});
  CHECK(ended.code == 5);
  CHECK(contains(ended.error, text("error: port ", port, " of this host is taken; set ZEROPP_PORT to a free one")));
#ifndef ZEROPP_MPI
  ended = in_process([&] { return launch({}, nothing); }, {{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}});
  CHECK(ended.code == 2);
  CHECK(contains(ended.error,
                 "mpirun (PMI) started this process as rank 1 of 4, but this program was built without MPI; link "
                 "zeropp::mpi"));
#endif
}

TEST_CASE("a rank that never comes back does not keep the program") {
  const auto start = std::chrono::steady_clock::now();
  const auto ended = in_process([] {
    return launch({.ranks = 3, .limit = 200ms}, [](World& world) {
      if (world.rank == 1)
        for (;;) std::this_thread::sleep_for(1s);
      world.comm.barrier();
    });
  });
  CHECK(ended.code == 5);
  CHECK(contains(ended.error, "waited 0.2 s in barrier number 0 for rank 1, which did not come"));
  CHECK(contains(ended.error, "a rank has not ended 0.2 s later; ending the process"));
  CHECK(std::chrono::steady_clock::now() - start < 5s);
}

TEST_CASE("a rank that waits for others says for whom, after five seconds") {
  const auto port = text(detail::own_address(detail::listen_at({"127.0.0.1", 0}, 1, "")).port);
  for (const char* rank : {"0", "1"}) {
    const Table environment{
        {"RANK", rank}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "127.0.0.1"}, {"ZEROPP_PORT", port}};
    const auto ended = in_process([] { return launch({.limit = 5500ms}, [](World&) {}); }, environment);
    CHECK(ended.code == 5);
    const auto words = rank[0] == '0' ? text("rank 0 waits at 127.0.0.1:", port, " for ranks 1 and 2 of 3, for 5.5 s at most")
                                      : text("rank 1 waits for rank 0 at 127.0.0.1:", port, " of 3, for 5.5 s at most");
    CHECK_MESSAGE(contains(ended.error, words), ended.error);
    CHECK(ended.error.find(" at most") == ended.error.rfind(" at most"));
  }
}

TEST_CASE("closed standard descriptors are held, so that no file or socket gets what is printed") {
  for (const int closed : {0, 1, 2}) {
    const auto ended = in_process([&] {
      close(closed);
      return launch({}, [&](World&) {
        const int file = open("/dev/zero", O_RDONLY);
        return file > STDERR_FILENO && fcntl(closed, F_GETFD) >= 0 ? 40 : 41;
      });
    });
    CHECK(ended.code == 40);
  }
  const auto ended = in_process([] {
    for (int descriptor : {0, 1, 2}) close(descriptor);
    hold_standard_descriptors();
    return open("/dev/zero", O_RDONLY) > STDERR_FILENO ? 40 : 41;
  });
  CHECK(ended.code == 40);
}

TEST_CASE("a rank is named once in a sentence, and a usage error names no place") {
  CHECK(detail::with_rank(2, "torn file") == "rank 2: torn file");
  CHECK(detail::with_rank(2, "rank 0: torn file") == "rank 0: torn file");
  CHECK(detail::with_rank(2, "rank 2 in barrier: late") == "rank 2 in barrier: late");
  CHECK(detail::with_rank(2, "ranks disagree") == "rank 2: ranks disagree");
  CHECK(detail::with_rank(-1, "torn file") == "torn file");
  for (const int ranks : {1, 2}) {
    const auto ended = in_process([&] {
      return launch({.ranks = ranks, .limit = 5s}, [](World& world) {
        if (world.rank == 0) throw ConfigError("rank 0: no such key");
        world.comm.barrier();
      });
    });
    CHECK(ended.error == "error: rank 0: no such key\n");
  }
}

TEST_CASE("the first signal asks, a later one ends, whichever they are; an ignored one stays ignored") {
  for (const auto& [first, second] : {std::pair{SIGINT, SIGINT}, {SIGTERM, SIGINT}, {SIGHUP, SIGTERM}}) {
    const auto ended = in_process([&, one = first, other = second] {
      const Interrupt interrupt, of_another_rank{false};
      for (int number : {one, one, other, SIGTERM}) raise(number);  // at one moment: they count as one
      if (Interrupt::signal() != one) return 1;
      std::this_thread::sleep_for(600ms);
      raise(other);
      return 2;
    });
    CHECK(ended.code == 128 + second);
    const std::string words = "finishing this step and saving; another signal ends at once";
    CHECK(contains(ended.error, words));
    CHECK(ended.error.find(words) == ended.error.rfind(words));
  }
  CHECK(in_process([] {
          std::signal(SIGHUP, SIG_IGN);  // nohup
          std::signal(SIGINT, SIG_IGN);  // & in a script
          {
            const Interrupt interrupt{false};
            for (int number : {SIGHUP, SIGINT, SIGHUP}) raise(number);
            if (Interrupt::signal() != 0) return 1;
            raise(SIGTERM);
            for (int number : {SIGHUP, SIGINT, SIGHUP}) raise(number);
            if (Interrupt::signal() != SIGTERM) return 2;
          }
          raise(SIGHUP);
          return 42;
        }).code == 42);
  CHECK(in_process([] {  // before and after, a signal ends
          { const Interrupt interrupt{false}; }
          raise(SIGTERM);
          return 1;
        }).code == 143);
  CHECK(in_process([] {  // while one of two thread ranks still trains, it asks
          std::optional<Interrupt> one{false}, other{false};
          one.reset();
          raise(SIGTERM);
          return Interrupt::signal();
        }).code == SIGTERM);
}
