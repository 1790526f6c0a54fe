// SPDX-License-Identifier: Apache-2.0
// Which rank of how many this process is, read from what torchrun, mpirun and srun leave in the environment. Half-set
// or contradicting values are refused: a process that believes the wrong number trains a wrong model.
#pragma once

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include <zeropp/base/error.hpp>

namespace zeropp {

struct RankInfo {
  int rank = 0;
  int size = 1;        ///< 0: started as one of several, the number is known to MPI only
  int local_rank = 0;  ///< among the ranks of this host
  std::string source = "one process";
};

namespace detail {

/// Reads one variable; nullptr where it is not set. std::getenv, or a table in a test.
using Environment = std::function<const char*(const char*)>;

inline std::optional<int> number_in(const Environment& environment, const char* name) {
  const char* value = environment(name);
  if (!value) return std::nullopt;
  const char* end = value + std::strlen(value);
  int number = -1;
  const auto [stop, error] = std::from_chars(value, end, number);
  if (error != std::errc{} || stop != end || number < 0)
    throw ConfigError(text(name, "=", value, " is not a number of 0 or more; unset it or start the ranks again"));
  return number;
}

struct RankVariables {
  const char *source, *rank, *size, *local_rank;
};

/// The rank as one launcher states it, or nothing. Throws ConfigError where rank or size is missing or the rank is out
/// of range.
inline std::optional<RankInfo> ranks_said_by(const RankVariables& names, const Environment& environment) {
  const auto rank = number_in(environment, names.rank), size = number_in(environment, names.size);
  if (!rank && !size) return std::nullopt;
  if (!rank || !size)
    throw ConfigError(text(rank ? names.rank : names.size, " is set but ", rank ? names.size : names.rank,
                           " is not; set both (", names.source, " does) or neither"));
  if (*rank >= *size)
    throw ConfigError(text(names.rank, "=", *rank, " is not below ", names.size, "=", *size, "; ranks count from 0"));
  const auto local = number_in(environment, names.local_rank);
  return RankInfo{*rank, *size, local.value_or(*rank), names.source};
}

/// Slurm gives the script of sbatch and the shell of salloc the variables of a task, but no other task waits for them.
/// Only a step of srun has a step number, and one of ten digits stands for such a script or shell.
inline bool task_of_srun(const Environment& environment) {
  const char* step = environment("SLURM_STEP_ID");
  return step && std::strlen(step) < 10;
}

}  // namespace detail

/// The rank of this process: torchrun's RANK and WORLD_SIZE, Open MPI's and PMI's variables, srun's. One process where
/// none is set. Throws ConfigError with the variables' names where they are half-set, no numbers, or contradict.
inline RankInfo ranks_in_environment(const detail::Environment& environment = [](const char* name) {
  return static_cast<const char*>(std::getenv(name));
}) {
  using detail::RankVariables;
  constexpr RankVariables launchers[] = {
      {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
      {"mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"mpirun (PMI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"}};
  std::optional<RankInfo> found;
  for (const auto& names : launchers)
    if (const auto said = detail::ranks_said_by(names, environment)) {
      if (found && (found->rank != said->rank || found->size != said->size))
        throw ConfigError(text(found->source, " says rank ", found->rank, " of ", found->size, ", ", said->source,
                               " says rank ", said->rank, " of ", said->size, "; unset the variables of one of them"));
      if (!found) found = said;
    }
  // srun comes last: torchrun and mpirun are often started by it, once a host, and then its numbers count hosts.
  if (!found && detail::task_of_srun(environment) && detail::number_in(environment, "SLURM_PROCID") &&
      detail::number_in(environment, "SLURM_NTASKS").value_or(1) > 1)
    found = detail::ranks_said_by({"srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"}, environment);
  if (const auto rank = detail::number_in(environment, "PMIX_RANK")) {
    if (!found) return {*rank, 0, *rank, "PMIx"};
    if (found->source != "torchrun" && found->rank != *rank)
      throw ConfigError(text(found->source, " says rank ", found->rank, ", PMIX_RANK says ", *rank,
                             "; unset the variables of one of them"));
  }
  return found.value_or(RankInfo{});
}

/// Whether the launcher is one of MPI's, so that MPI_Init finds the other processes.
inline bool started_by_mpi(const detail::Environment& environment = [](const char* name) {
  return static_cast<const char*>(std::getenv(name));
}) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"})
    if (environment(name)) return true;
  return false;
}

}  // namespace zeropp
