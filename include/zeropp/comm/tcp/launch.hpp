// SPDX-License-Identifier: Apache-2.0
// A program's rank among processes joined by TCP: meeting the others, the body, and an end for all where one fails.
#pragma once

#include <zeropp/comm/ranks.hpp>
#include <zeropp/comm/report.hpp>
#include <zeropp/comm/tcp/tcp.hpp>

namespace zeropp::detail {

/// Runs body(comm), which returns an exit code, on this process' rank. An error is printed with the rank and ends all
/// ranks, with its exit code.
template <class Body>
int tcp_launch(const RankInfo& found, std::chrono::nanoseconds limit, const Body& body) {
  const auto links = tcp_links(tcp_place(found), limit);
  const auto backend = std::make_shared<TcpBackend>(links);
  try {
    const int code = body(Comm{backend});
    backend->finish();
    return code;
  } catch (const CommError& e) {
    const int code = report_current_exception(found.rank);
    links->fail(e.what(), code);
    return links->failure().value_or(TcpFailure{{}, code}).code;  // that of the rank that failed first
  } catch (...) {
    const int code = report_current_exception(found.rank);
    links->fail(text("rank ", found.rank, " failed (exit code ", code, "); its own output says why"), code);
    return code;
  }
}

}  // namespace zeropp::detail
