// SPDX-License-Identifier: Apache-2.0
// Ranks joined by TCP, here as threads that each have connections of their own: how they meet, who is refused, and that
// nothing they do at once locks them. tests/tcp holds what needs processes.
// labels: tcp
#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <zeropp/comm/launch.hpp>

#include "mpi/collectives.hpp"

using namespace zeropp;
using namespace std::chrono_literals;

namespace {

bool contains(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }

using Table = std::map<std::string, std::string>;

TcpPlace place_in(const Table& table) {
  const detail::Environment environment = [&](const char* name) -> const char* {
    const auto at = table.find(name);
    return at == table.end() ? nullptr : at->second.c_str();
  };
  return tcp_place(ranks_in_environment(environment), environment);
}
std::string refused(const Table& table) {
  try {
    return "accepted: " + detail::text_of(place_in(table).meet);
  } catch (const ConfigError& e) {
    return e.what();
  }
}

int free_port() { return detail::own_address(detail::listen_at({"127.0.0.1", 0}, 1, "")).port; }
TcpPlace place(int rank, int size, int port, std::string token = "a run") {
  return {.rank = rank, .size = size, .meet = {"127.0.0.1", port}, .token = std::move(token)};
}

/// The end of each of `places`: "" or its sentence.
std::vector<std::string> ends_of(const std::vector<TcpPlace>& places, const std::function<void(Comm)>& body,
                                 std::chrono::nanoseconds limit = 20s) {
  std::vector<std::string> ends(places.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < places.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        body(tcp_comm(places[i], limit));
      } catch (const std::exception& e) {
        ends[i] = e.what();
      }
    });
  for (auto& thread : threads) thread.join();
  return ends;
}
std::vector<std::string> ends_of(int ranks, const std::function<void(Comm)>& body,
                                 std::chrono::nanoseconds limit = 20s) {
  std::vector<TcpPlace> places;
  const int port = free_port();
  for (int r = 0; r < ranks; ++r) places.push_back(place(r, ranks, port));
  return ends_of(places, body, limit);
}
void meet(const Comm& comm) { comm.barrier(); }

}  // namespace

TEST_CASE("where the ranks meet, by launcher") {
  const Table torchrun{{"RANK", "3"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "gpu7"}, {"MASTER_PORT", "29500"}};
  auto at = place_in(torchrun);
  CHECK(at.rank == 3);
  CHECK(at.size == 8);
  CHECK(detail::text_of(at.meet) == "gpu7:30500");
  CHECK(at.token == "at gpu7:30500");
  const auto with = [&](Table more) {
    more.insert(torchrun.begin(), torchrun.end());
    return place_in(more);
  };
  CHECK(with({{"ZEROPP_PORT_OFFSET", "0"}}).meet.port == 29500);
  CHECK(with({{"ZEROPP_PORT", "4000"}}).meet.port == 4000);
  CHECK(with({{"MASTER_PORT", "65000"}}).meet.port == 1488);  // around the end, not below 1024
  CHECK(with({{"MASTER_ADDR", "localhost"}}).meet.host == "127.0.0.1");
  CHECK(detail::text_of(with({{"MASTER_ADDR", "fe80::7"}}).meet) == "[fe80::7]:30500");
  CHECK(with({{"ZEROPP_TOKEN", "secret"}}).token == "secret");
  // A worker of an earlier attempt of the same run is of another run.
  CHECK(with({{"TORCHELASTIC_RUN_ID", "x"}, {"TORCHELASTIC_RESTART_COUNT", "0"}}).token !=
        with({{"TORCHELASTIC_RUN_ID", "x"}, {"TORCHELASTIC_RESTART_COUNT", "1"}}).token);

  const Table srun{{"SLURM_PROCID", "1"},        {"SLURM_NTASKS", "4"},
                   {"SLURM_LOCALID", "0"},       {"SLURM_STEP_NODELIST", "n[07-09]"},
                   {"SLURM_JOB_ID", "12345678"}, {"SLURM_STEP_ID", "2"}};
  at = place_in(srun);
  CHECK(at.meet.host == "n07");
  CHECK(at.meet.port >= 15000);
  CHECK(at.meet.port < 30000);
  CHECK(at.token == "srun 12345678 2");
  auto other = srun;
  other["SLURM_STEP_ID"] = "3";
  CHECK(place_in(other).meet.port != at.meet.port);
  other["MASTER_ADDR"] = "10.0.0.1";
  other["MASTER_PORT"] = "2000";
  CHECK(detail::text_of(place_in(other).meet) == "10.0.0.1:3000");

  for (const auto& [list, host] : Table{{"a", "a"},
                                        {"a,b", "a"},
                                        {"gpu[007-012,020],x", "gpu007"},
                                        {"n[3,5]", "n3"},
                                        {"r1-n[10]", "r1-n10"},
                                        {"n[1-2].site,m", "n1.site"},
                                        {"a,n[1-2]", "a"},
                                        {"n[1", ""},
                                        {"", ""}})
    CHECK(detail::first_host(list) == host);
}

TEST_CASE("an environment that does not say where is refused by name") {
  const Table ranks{{"RANK", "1"}, {"WORLD_SIZE", "2"}};
  const auto with = [&](Table more) {
    more.insert(ranks.begin(), ranks.end());
    return refused(more);
  };
  CHECK(contains(with({}), "torchrun started this process as rank 1 of 2, but MASTER_ADDR is not set"));
  CHECK(contains(with({{"MASTER_ADDR", "a"}}), "but MASTER_PORT is not set"));
  CHECK(contains(with({{"MASTER_ADDR", "a"}, {"MASTER_PORT", "x"}}), "MASTER_PORT=x is not a number"));
  CHECK(contains(with({{"MASTER_ADDR", "a"}, {"MASTER_PORT", "0"}}), "MASTER_PORT=0 is no port"));
  CHECK(contains(with({{"MASTER_ADDR", "a"}, {"ZEROPP_PORT", "70000"}}), "ZEROPP_PORT=70000 is no port"));
  CHECK(contains(with({{"MASTER_ADDR", "a"}, {"ZEROPP_PORT", "1"}, {"ZEROPP_TOKEN", std::string(300, 'x')}}),
                 "set ZEROPP_TOKEN to at most 255"));
}

TEST_CASE("every collective has the bits of threads, also between ranks that send all at once") {
  for (const int ranks : {2, 3}) {
    std::atomic<std::uint64_t> bits{0}, threads{0};
    const auto ends = ends_of(ranks, [&](Comm comm) {
      CHECK(comm.name() == "TCP");
      test::Hash hash;
      test::collectives_of<float>(comm, hash);
      test::collectives_of<bf16>(comm, hash);
      test::groups(comm, hash);
      test::pending(comm);
      if (comm.rank() == 0) bits = hash.value();
      // Much more than a socket holds: to all before anything is received, in two groups.
      const std::vector<std::int32_t> much(3 << 20, comm.rank() + 1);
      std::vector<std::int32_t> got(much.size());
      const Comm again = comm.split(0, -comm.rank());
      for (int r = 0; r < ranks; ++r) comm.send(r, std::span(much));
      for (int r = 0; r < ranks; ++r) again.send(r, std::span(much));
      for (int r = 0; r < ranks; ++r) {
        comm.recv(r, std::span(got));
        if (got.back() != r + 1) throw Error("wrong message");
        again.recv(r, std::span(got));
        if (got.front() != ranks - r) throw Error("wrong message of a group");
      }
      comm.barrier();
    });
    for (const auto& end : ends) CHECK(end == "");
    run_ranks(ranks, [&](Comm comm) {
      test::Hash hash;
      test::collectives_of<float>(comm, hash);
      test::collectives_of<bf16>(comm, hash);
      test::groups(comm, hash);
      if (comm.rank() == 0) threads = hash.value();
    });
    CHECK(bits == threads);
  }
}

TEST_CASE("a rank that does not come is named after the limit, by all that did") {
  const auto start = std::chrono::steady_clock::now();
  const int port = free_port();
  auto ends = ends_of({place(0, 4, port), place(2, 4, port)}, meet, 400ms);
  CHECK(contains(ends[0], text("rank 0 waited 0.4 s for ranks 1 and 3 of 4 to join at 127.0.0.1:", port)));
  CHECK(contains(ends[1], "rank 2 of 4 cannot join rank 0"));
  CHECK(contains(ends[1], "for ranks 1 and 3 of 4 to join"));
  ends = ends_of({place(1, 2, port)}, meet, 400ms);
  CHECK(contains(ends[0], text("rank 1 waited 0.4 s for rank 0 at 127.0.0.1:", port, ", which did not answer")));
  ends = ends_of({[&] {
                   auto nowhere = place(1, 2, port);
                   nowhere.meet.host = "no-such-host.invalid";
                   return nowhere;
                 }()},
                 meet, 400ms);
  CHECK(contains(ends[0], "the name no-such-host.invalid is not known"));
  auto elsewhere = place(0, 2, port);
  elsewhere.meet.host = "203.0.113.1";  // of nobody: RFC 5737
  CHECK(contains(ends_of({elsewhere}, meet, 200ms)[0], "203.0.113.1 (MASTER_ADDR) is no address of this host"));
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

TEST_CASE("who does not belong to the run is refused in a sentence, and the run goes on") {
  const int port = free_port();
  const auto late = [](Comm comm) {
    comm.barrier();
    std::this_thread::sleep_for(100ms);
    comm.barrier();
  };
  std::vector<std::string> strangers;
  std::thread outside([&] {
    std::string reason;
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    const auto visit = [&](std::string_view words) {
      detail::Socket socket;
      while (!socket && std::chrono::steady_clock::now() < deadline)
        socket = detail::try_to_connect({"127.0.0.1", port}, deadline, reason);
      static_cast<void>(detail::send_all(socket, std::as_bytes(std::span(words)), deadline, reason));
      return socket;
    };
    const auto http = visit("GET / HTTP/1.1\r\n\r\n"), slow = visit("zero"), silent = visit("");
    visit(std::string(10'000, '\x7f'));
    // the last rank comes after all of these
    strangers =
        ends_of({place(1, 3, port, "another run"), place(1, 4, port), place(7, 3, port), place(0, 1, port)}, meet, 1s);
    const auto last = ends_of({place(2, 3, port)}, late);
    strangers.push_back(last[0]);
  });
  const auto ends = ends_of({place(0, 3, port), place(1, 3, port)}, late);
  outside.join();
  CHECK(ends[0] == "");
  CHECK(ends[1] == "");
  CHECK(contains(strangers[0], "its token is another one, so it belongs to another run"));
  CHECK(contains(strangers[1], "this run has 3 ranks; start all with the same number"));
  CHECK(contains(strangers[2], "there is no rank 7 of 3"));
  CHECK(strangers[3] == "");  // one rank is alone
  CHECK(strangers[4] == "");
}

TEST_CASE("a rank that joins and dies before the others have come is named at once") {
  const int port = free_port();
  std::thread dies([&] {
    std::string reason;
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    detail::Socket socket;
    while (!socket && std::chrono::steady_clock::now() < deadline)
      socket = detail::try_to_connect({"127.0.0.1", port}, deadline, reason);
    detail::TcpHello hello{{}, detail::tcp_protocol, detail::tcp_byte_order, 2, 4, 1, 5, "a run"};
    std::copy(std::begin(detail::tcp_magic), std::end(detail::tcp_magic), hello.magic);
    CHECK(detail::send_all(socket, detail::bytes_of(hello), deadline, reason));
    std::this_thread::sleep_for(100ms);
  });
  std::string late;
  std::thread comes_late([&] {
    std::this_thread::sleep_for(600ms);
    late = ends_of({place(3, 4, port)}, meet)[0];
  });
  const auto ends = ends_of({place(0, 4, port), place(1, 4, port)}, meet);
  dies.join();
  comes_late.join();
  CHECK(contains(late, "rank 2 ended before all ranks had joined"));
  CHECK(ends[0] == "rank 2 ended before all ranks had joined");
  CHECK(contains(ends[1], "rank 2 ended before all ranks had joined"));
}

TEST_CASE("two ranks with one number, and a port that is taken") {
  int port = free_port();
  const auto ends = ends_of({place(0, 3, port), place(1, 3, port), place(1, 3, port)}, meet, 600ms);
  CHECK(contains(ends[0], "for rank 2 of 3 to join"));
  CHECK(contains(ends[0], "1 other was refused meanwhile"));
  CHECK(contains(ends[1] + ends[2], "rank 1 has joined before, from 127.0.0.1:"));

  const auto other = detail::listen_at({"127.0.0.1", 0}, 1, "");
  port = detail::own_address(other).port;
  CHECK(
      contains(ends_of({place(0, 2, port)}, meet)[0], text("port ", port, " of this host is taken; set ZEROPP_PORT")));
  std::thread answers([&] {  // something else has the port of rank 0
    detail::wait_for(other.handle(), POLLIN, std::chrono::steady_clock::now() + 10s);
    const detail::Socket guest{::accept(other.handle(), nullptr, nullptr)};
    std::string reason;
    const std::string_view words = "HTTP/1.1 400 Bad Request\r\n\r\n";
    static_cast<void>(
        detail::send_all(guest, std::as_bytes(std::span(words)), std::chrono::steady_clock::now() + 1s, reason));
    std::this_thread::sleep_for(300ms);
  });
  CHECK(contains(ends_of({place(1, 2, port)}, meet)[0], "is no rank of zeropp"));
  answers.join();
}

TEST_CASE("a rank that leaves is named at once, where it is missed") {
  auto ends = ends_of(3, [](Comm comm) {
    comm.barrier();
    if (comm.rank() != 2) comm.barrier();
  });
  CHECK(contains(ends[0] + ends[1], "rank 2 calls the end of the program"));
  CHECK(contains(ends[1], "rank 2 calls the end of the program"));
  CHECK(ends[2] == "");
  ends = ends_of(2, [](Comm comm) {
    float data[2];
    if (comm.rank() == 0) comm.recv(1, std::span<float>(data));
  });
  CHECK(ends[0] == "rank 0 calls recv of 2 float32 from rank 1, which ended without sending it");
  CHECK(ends[1] == "");
  // After a failure every operation fails.
  ends = ends_of(2, [](Comm comm) {
    std::vector<float> data(comm.rank() == 0 ? 3 : 4);
    CHECK_THROWS_AS(comm.all_reduce(std::span(data)), CommError);
    comm.barrier();
  });
  CHECK(contains(ends[0], "rank 0 in barrier number 1: ended because ranks disagree: rank 0 calls all_reduce"));
  CHECK(contains(ends[1], "rank 1 in barrier number 1: ended because ranks disagree: rank 0 calls all_reduce"));
}
