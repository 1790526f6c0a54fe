// SPDX-License-Identifier: Apache-2.0
// Where the ranks of a run meet when they are processes joined by TCP, from what torchrun and srun leave in the
// environment: the address of rank 0, and a token that keeps runs apart.
//
//   MASTER_ADDR, MASTER_PORT        host of rank 0; torchrun's agent keeps that port for itself, so rank 0 listens
//   ZEROPP_PORT_OFFSET (1000)       this far above it,
//   ZEROPP_PORT                     or at this port
//   ZEROPP_TOKEN                    instead of one made of the run's id (TORCHELASTIC_RUN_ID, SLURM_JOB_ID) or address
//
// Under srun they may be missing: rank 0 is on the first host of the step, and the port is made of the job's number.
#pragma once

#include <cctype>
#include <string>

#include <zeropp/comm/ranks.hpp>
#include <zeropp/comm/tcp/socket.hpp>

namespace zeropp {

/// Rank `rank` of `size` processes that meet at `meet`, where rank 0 listens. All must give the same token.
struct TcpPlace {
  int rank = 0, size = 1;
  detail::Address meet = {};
  std::string token = {};
};

namespace detail {

inline constexpr std::size_t longest_token = 255;

/// "gpu[007-012,020],login1" -> "gpu007"
inline std::string first_host(const std::string& list) {
  const auto bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const auto end = list.find_first_of("-,]", bracket);
  const auto close = list.find(']', bracket);
  if (end == std::string::npos || close == std::string::npos) return {};
  const auto comma_after = list.find(',', close);
  const auto tail = list.substr(close + 1, comma_after == std::string::npos ? comma_after : comma_after - close - 1);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) + tail;
}

inline std::string word_in(const Environment& environment, const char* name) {
  const char* value = environment(name);
  return value ? value : "";
}

inline int port_in(const Environment& environment, const RankInfo& found) {
  const auto checked = [](const char* name, int port) {
    if (port < 1 || port > 65535) throw ConfigError(text(name, "=", port, " is no port; ports are 1 to 65535"));
    return port;
  };
  if (const auto port = number_in(environment, "ZEROPP_PORT")) return checked("ZEROPP_PORT", *port);
  if (const auto master = number_in(environment, "MASTER_PORT")) {
    const int port = checked("MASTER_PORT", *master);
    const int offset = number_in(environment, "ZEROPP_PORT_OFFSET").value_or(1000);
    if (offset > 65535 - 1) throw ConfigError(text("ZEROPP_PORT_OFFSET=", offset, " is beyond all ports"));
    return port + offset <= 65535 ? port + offset : port + offset - 65535 + 1023;
  }
  if (const auto job = number_in(environment, "SLURM_JOB_ID"); job && found.source == "srun") {
    const auto number = *job * std::int64_t{7} + number_in(environment, "SLURM_STEP_ID").value_or(0);
    return 15000 + static_cast<int>(number % 15000);
  }
  throw ConfigError(text(found.source, " started this process as rank ", found.rank, " of ", found.size,
                         ", but MASTER_PORT is not set; set it to a port that is free on the host of rank 0, the same "
                         "for all ranks"));
}

}  // namespace detail

/// Where the process that `found` describes meets the others. Throws ConfigError where address or port are missing.
inline TcpPlace tcp_place(
    const RankInfo& found, const detail::Environment& environment = [](const char* name) {
      return static_cast<const char*>(std::getenv(name));
    }) {
  using detail::word_in;
  const auto started = text(found.source, " started this process as rank ", found.rank, " of ", found.size);
  TcpPlace place{.rank = found.rank, .size = found.size};
  const bool by_srun = found.source == "srun";
  place.meet.host = word_in(environment, "MASTER_ADDR");
  for (const char* list : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"})
    if (place.meet.host.empty() && by_srun) place.meet.host = detail::first_host(word_in(environment, list));
  if (place.meet.host.empty())
    throw ConfigError(text(started, ", but MASTER_ADDR is not set; set it to the host of rank 0, and MASTER_PORT to a ",
                           "free port there, or start the ranks with torchrun, or use --ranks N for threads of one "
                           "process"));
  if (place.meet.host == "localhost") place.meet.host = "127.0.0.1";  // one address, not two
  place.meet.port = detail::port_in(environment, found);

  place.token = word_in(environment, "ZEROPP_TOKEN");
  const auto run = word_in(environment, "TORCHELASTIC_RUN_ID"), job = word_in(environment, "SLURM_JOB_ID");
  if (place.token.empty() && !run.empty() && !by_srun)
    place.token = text("torchrun ", run, " ", word_in(environment, "TORCHELASTIC_RESTART_COUNT"), " ",
                       word_in(environment, "MASTER_PORT"));
  if (place.token.empty() && !job.empty() && by_srun)
    place.token = text("srun ", job, " ", word_in(environment, "SLURM_STEP_ID"));
  if (place.token.empty()) place.token = "at " + detail::text_of(place.meet);
  if (place.token.size() > detail::longest_token)
    throw ConfigError(text("the token of this run has ", place.token.size(),
                           " characters; set ZEROPP_TOKEN to at most ", detail::longest_token));
  return place;
}

}  // namespace zeropp
