// SPDX-License-Identifier: Apache-2.0
// Regular expressions with Unicode classes that cut text into words before pairs are merged, as the tokenizers of
// GPT-2, Llama 3 and Qwen do: libpcre2, where the program is built with it (ZEROPP_PCRE2).
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#ifdef ZEROPP_PCRE2
#include <pcre2.h>
#endif

#include <zeropp/base/error.hpp>

namespace zeropp {

#ifdef ZEROPP_PCRE2
class Pattern {
 public:
  static constexpr bool available = true;

  /// Throws DataError for an expression that pcre2 does not know.
  explicit Pattern(const std::string& expression) {
    int error = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(expression.data()), expression.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &at, nullptr));
    if (!code_) {
      unsigned char why[160] = {};
      pcre2_get_error_message_8(error, why, sizeof why);
      throw DataError(text("the pattern ", expression, " of a tokenizer is not understood at its byte ", at, ": ",
                           reinterpret_cast<const char*>(why)));
    }
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot be, matches take longer
  }

  /// Calls f(piece) for each match, and for what lies between two; the pieces put together are the text.
  template <class F>
  void for_each_piece(std::string_view input, F&& f) const {
    const std::unique_ptr<pcre2_match_data_8, Delete> match(pcre2_match_data_create_8(1, nullptr));
    std::size_t done = 0;
    for (std::size_t from = 0; from < input.size();) {
      const int found = pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(input.data()), input.size(), from, 0,
                                      match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0)
        throw DataError(text("a tokenizer's pattern fails at byte ", from, " of the text (pcre2: ", found, ")"));
      const auto* const ends = pcre2_get_ovector_pointer_8(match.get());
      if (ends[0] > done) f(input.substr(done, ends[0] - done));
      if (ends[1] > ends[0]) f(input.substr(ends[0], ends[1] - ends[0]));
      done = ends[1];
      from = std::max(done, from + (ends[1] == ends[0]));
    }
    if (done < input.size()) f(input.substr(done));
  }

 private:
  struct Delete {
    void operator()(pcre2_code_8* code) const { pcre2_code_free_8(code); }
    void operator()(pcre2_match_data_8* data) const { pcre2_match_data_free_8(data); }
  };
  std::unique_ptr<pcre2_code_8, Delete> code_;
};
#else
/// Stands in where there is no libpcre2, and says so when it is needed.
class Pattern {
 public:
  static constexpr bool available = false;
  explicit Pattern(const std::string& expression) {
    throw ConfigError(text("this program was built without libpcre2, which cuts text by the pattern ", expression,
                           " of the tokenizer; install libpcre2-dev and build it again"));
  }
  template <class F>
  void for_each_piece(std::string_view, F&&) const {}
};
#endif

}  // namespace zeropp
