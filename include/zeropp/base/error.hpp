// SPDX-License-Identifier: Apache-2.0
// Errors: one sentence that says what was asked, what was found and what to do; the place in the code; the exit code.
#pragma once

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace zeropp {

/// Exit codes of a program (`launch` returns them). After a failure never 0.
enum class ExitCode : int { done = 0, failure = 1, usage = 2, memory = 3, data = 4, communication = 5 };

/// A place in the source; give it as a defaulted last argument. (clang 14 has no std::source_location.)
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

namespace detail {
inline void append(std::string& out, std::string_view part) { out += part; }
inline void append(std::string& out, char part) { out += part; }
template <std::same_as<bool> T>  // a template, or string literals would convert to bool
void append(std::string& out, T part) {
  out += part ? "true" : "false";
}
template <class T>
requires((std::integral<T> || std::floating_point<T>)&&!std::same_as<T, bool> &&
         !std::same_as<T, char>) void append(std::string& out, T part) {
  char digits[64];
  out.append(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
}
}  // namespace detail

/// Concatenates strings, characters and numbers (shortest form that reads back to the same value).
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

/// Base of everything the library throws. `what()` is the sentence; `where()` the place; `exit_code()` what `launch`
/// returns when nobody catches it.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& sentence, Where where = Where::here(), ExitCode code = ExitCode::failure)
      : std::runtime_error(sentence), where_(where), code_(code) {}
  Where where() const { return where_; }
  ExitCode exit_code() const { return code_; }

 private:
  Where where_;
  ExitCode code_;
};

/// A setting, a size or a composition that cannot be: found before memory is taken.
struct ConfigError : Error {
  explicit ConfigError(const std::string& sentence, Where where = Where::here())
      : Error(sentence, where, ExitCode::usage) {}
};

/// Memory asked for beyond what a device or a pool has.
struct MemoryError : Error {
  explicit MemoryError(const std::string& sentence, Where where = Where::here())
      : Error(sentence, where, ExitCode::memory) {}
};

/// A file of data or a checkpoint that cannot be used.
struct DataError : Error {
  explicit DataError(const std::string& sentence, Where where = Where::here())
      : Error(sentence, where, ExitCode::data) {}
};

/// Ranks that disagree, died, or did not answer within the limit.
struct CommError : Error {
  explicit CommError(const std::string& sentence, Where where = Where::here())
      : Error(sentence, where, ExitCode::communication) {}
};

}  // namespace zeropp
