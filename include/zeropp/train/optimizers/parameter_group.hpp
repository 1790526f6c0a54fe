// SPDX-License-Identifier: Apache-2.0
// Parameters that an optimizer treats apart from the rest, by a pattern of their names.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace zeropp {

struct ParameterGroup {
  std::string pattern;                    ///< of names: `*` is any text, `?` any character; "h.*.attn.*"
  float rate = 1;                         ///< the learning rate's factor
  std::optional<float> weight_decay = {};  ///< in place of the optimizer's, and whatever Parameter::decay says
};

/// Whether all of `name` is `pattern`, with * for any text and ? for any character.
constexpr bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, after = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++, after = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p, ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1, n = ++after;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

/// The first group whose pattern the name matches; null: none.
inline const ParameterGroup* group_of(std::span<const ParameterGroup> groups, std::string_view name) {
  for (auto& group : groups)
    if (matches(group.pattern, name)) return &group;
  return nullptr;
}

}  // namespace zeropp
