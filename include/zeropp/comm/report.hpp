// SPDX-License-Identifier: Apache-2.0
// The end of a program that failed: one sentence on stderr and an exit code.
#pragma once

#include <cstdio>
#include <new>
#include <string>

#include <zeropp/base/error.hpp>

namespace zeropp::detail {

/// "rank 2: " before a sentence of that rank; sentences that begin with a rank stay as they are.
inline std::string with_rank(int rank, const std::string& sentence) {
  const bool named = sentence.starts_with("rank ") && sentence.size() > 5 && sentence[5] >= '0' && sentence[5] <= '9';
  return rank < 0 || named ? sentence : text("rank ", rank, ": ", sentence);
}

/// Prints the sentence of the exception in flight and gives its exit code. A rank of 0 or more is named first. The
/// place in the code follows, unless the error is in the words of the user.
inline int report_current_exception(int rank = -1) {
  const auto print = [&](const std::string& sentence, int code) {
    std::fprintf(stderr, "error: %s\n", with_rank(rank, sentence).c_str());
    std::fflush(stderr);
    return code;
  };
  try {
    throw;
  } catch (const Error& e) {
    const auto place = text("\n  at ", e.where().file, ":", e.where().line);
    return print(e.what() + (e.exit_code() == ExitCode::usage ? "" : place), static_cast<int>(e.exit_code()));
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
