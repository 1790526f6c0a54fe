// SPDX-License-Identifier: Apache-2.0
// Errors: one sentence that says what was asked, what was found and what to do; the place in the code; the exit code.
#pragma once

#include <charconv>
#include <concepts>
#include <initializer_list>
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

/// A part of what `text` joins: a string, a character, a number or a truth value, held by reference or by value. One
/// type for all of them, so that a sentence costs the compiler no instantiation.
class TextPart {
 public:
  TextPart() = default;
  TextPart(std::string_view part) : kind_(Kind::string), string_(part) {}
  TextPart(const std::string& part) : TextPart(std::string_view(part)) {}
  TextPart(const char* part) : TextPart(std::string_view(part)) {}
  TextPart(char part) : kind_(Kind::character), character_(part) {}
  template <std::same_as<bool> T>  // a template, or pointers would convert to bool
  TextPart(T part) : TextPart(part ? std::string_view("true") : std::string_view("false")) {}
  TextPart(float part) : kind_(Kind::single), single_(part) {}
  TextPart(double part) : kind_(Kind::real), real_(part) {}
  template <std::signed_integral T>
  TextPart(T part) : kind_(Kind::integer), integer_(part) {}
  template <std::unsigned_integral T>
  requires(!std::same_as<T, bool>)  //
      TextPart(T part)
      : kind_(Kind::natural), natural_(part) {}

  void append_to(std::string& out) const {
    char digits[64];
    char* const end = digits + sizeof digits;
    switch (kind_) {
      case Kind::nothing: break;
      case Kind::string: out += string_; break;
      case Kind::character: out += character_; break;
      case Kind::integer: out.append(digits, std::to_chars(digits, end, integer_).ptr); break;
      case Kind::natural: out.append(digits, std::to_chars(digits, end, natural_).ptr); break;
      case Kind::single: out.append(digits, std::to_chars(digits, end, single_).ptr); break;
      case Kind::real: out.append(digits, std::to_chars(digits, end, real_).ptr); break;
    }
  }

 private:
  enum class Kind : unsigned char { nothing, string, character, integer, natural, single, real } kind_ = Kind::nothing;
  union {
    std::string_view string_ = {};
    char character_;
    long long integer_;
    unsigned long long natural_;
    float single_;
    double real_;
  };
};

/// Concatenates strings, characters and numbers (shortest form that reads back to the same value).
inline std::string text(std::initializer_list<TextPart> parts) {
  std::string out;
  for (auto& part : parts) part.append_to(out);
  return out;
}
/// The same for up to twenty of them without braces; no template, for calls of many lengths.
inline std::string text(const TextPart& a = {}, const TextPart& b = {}, const TextPart& c = {}, const TextPart& d = {},
                        const TextPart& e = {}, const TextPart& f = {}, const TextPart& g = {}, const TextPart& h = {},
                        const TextPart& i = {}, const TextPart& j = {}, const TextPart& k = {}, const TextPart& l = {},
                        const TextPart& m = {}, const TextPart& n = {}, const TextPart& o = {}, const TextPart& p = {},
                        const TextPart& q = {}, const TextPart& r = {}, const TextPart& s = {},
                        const TextPart& t = {}) {
  return text({a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t});
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
