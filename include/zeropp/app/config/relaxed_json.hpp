// SPDX-License-Identifier: Apache-2.0
// Text that people write in JSON settings beside JSON, and DeepSpeed's reader (hjson) skips: comments, a comma before a
// closing bracket.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// `content` with spaces in the place of # and // and /* */ comments and of commas before a closing bracket, so that
/// each line stays where it was. Throws ConfigError for a comment without an end, and for a word without quotes.
inline std::string without_comments(const std::string& path, std::string content) {
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
  constexpr std::string_view digits = "0123456789+-.eE";
  const auto refuse = [&](std::size_t at, std::string_view words) {
    const auto line = 1 + std::count(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    throw ConfigError(text(path, " line ", line, ": ", words));
  };
  const auto blank = [&](std::size_t from, std::size_t to) {
    for (auto i = from; i < to; ++i)
      if (content[i] != '\n') content[i] = ' ';
    return to;
  };
  std::size_t comma = content.size();  // the last one, while nothing but space and comments follow it
  for (std::size_t i = 0; i < content.size();) {
    const char c = content[i];
    const auto ahead = std::string_view(content).substr(i, 2);
    if (c == '#' || ahead == "//") {
      i = blank(i, std::min(content.find('\n', i), content.size()));
      continue;
    }
    if (ahead == "/*") {
      const auto end = content.find("*/", i + 2);
      if (end == std::string::npos) refuse(i, "the comment that begins here has no end; close it with */");
      i = blank(i, end + 2);
      continue;
    }
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      ++i;
      continue;
    }
    if ((c == '}' || c == ']') && comma < content.size()) content[comma] = ' ';
    comma = c == ',' ? i : content.size();
    if (c == '"') {
      for (++i; i < content.size() && content[i] != '"' && content[i] != '\n'; ++i)
        if (content[i] == '\\') ++i;
      ++i;
    } else if (digits.find(c) < 13) {  // not the e of a word
      i = std::min(content.find_first_not_of(digits, i), content.size());
    } else if (letters.find(c) != std::string_view::npos) {
      const auto end = std::min(content.find_first_not_of(letters, i), content.size());
      const auto word = content.substr(i, end - i);
      if (word != "true" && word != "false" && word != "null")
        refuse(i, text(word,
                       " stands without quotes; a key and a text have \"quotes\", and other values are numbers, "
                       "true, false or null"));
      i = end;
    } else {
      ++i;
    }
  }
  return content;
}

}  // namespace zeropp
