// SPDX-License-Identifier: Apache-2.0
// The end of a program that failed: one sentence on stderr and an exit code.
#pragma once

#include <cstdio>
#include <new>
#include <string>

#include <zeropp/base/error.hpp>

namespace zeropp::detail {

/// Prints the sentence of the exception in flight, with its place, and gives its exit code. A rank of 0 or more is
/// named first, unless the sentence begins with it.
inline int report_current_exception(int rank = -1) {
  const auto print = [&](const std::string& sentence, int code) {
    const auto name = text("rank ", rank);
    const auto prefix = rank < 0 || sentence.rfind(name + " ", 0) == 0 ? std::string{} : name + ": ";
    std::fprintf(stderr, "error: %s%s\n", prefix.c_str(), sentence.c_str());
    std::fflush(stderr);
    return code;
  };
  try {
    throw;
  } catch (const Error& e) {
    return print(text(e.what(), "\n  at ", e.where().file, ":", e.where().line), static_cast<int>(e.exit_code()));
  } catch (const std::bad_alloc&) {
    return print("out of host memory; use a smaller batch or model, or more ranks with a higher stage",
                 static_cast<int>(ExitCode::memory));
  } catch (const std::exception& e) {
    return print(e.what(), static_cast<int>(ExitCode::failure));
  } catch (...) {
    return print("an exception that is no std::exception", static_cast<int>(ExitCode::failure));
  }
}

}  // namespace zeropp::detail
