// SPDX-License-Identifier: Apache-2.0
// Goes through the keys of a section that steer nothing here (deepspeed_keys.hpp): accepts values that hold anyway,
// notes values without effect, and refuses the rest.
#pragma once

#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/app/config/config.hpp>
#include <zeropp/app/config/deepspeed_keys.hpp>

namespace zeropp::deepspeed {

inline std::string lower(std::string word) {
  for (auto& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return word;
}

/// Whether the value of a key says what is so anyway.
inline bool holds(const detail::ConfigNode& node, std::string_view values) {
  using Kind = detail::ConfigNode::Kind;
  if (node.unsaid || values == "*") return true;
  if (values == "off") {
    if (node.kind == Kind::leaf) return node.value == false;
    for (auto& [name, member] : node.members)
      if (name == "enabled") return member->unsaid || member->value == false;
    return node.kind == Kind::object;
  }
  if (node.kind != Kind::leaf) return false;
  for (std::size_t at = 0; at < values.size();) {
    const auto end = std::min(values.find(' ', at), values.size());
    const auto value = nlohmann::json::parse(values.substr(at, end - at));
    if (node.value == value || (node.value.is_string() && lower(node.value.get<std::string>()) == value)) return true;
    at = end + 1;
  }
  return false;
}

/// The keys under `prefix` are known, whatever they say: those of a section that is not enabled.
inline void know_keys(ConfigSection& section, const std::string& prefix) {
  for (const auto& rule : keys)
    if (rule.path.starts_with(prefix)) (void)section.node(std::string(rule.path.substr(prefix.size())));
}

/// Settles the keys under `prefix` ("zero_optimization.", or "" for the whole file) and, one by one, those of sections
/// within it that the caller does not read (`read` names the others). Notes read "key (words)". Throws ConfigError.
inline void settle_keys(ConfigSection& section, const std::string& prefix, std::vector<std::string>& notes,
                        const std::set<std::string>& read = {}) {
  std::set<std::string> within;
  for (const auto& rule : keys) {
    if (!rule.path.starts_with(prefix)) continue;
    const std::string key(rule.path.substr(prefix.size()));
    if (const auto dot = key.find('.'); dot != std::string::npos) {
      within.insert(key.substr(0, dot));
      continue;
    }
    const auto* node = section.node(key);
    if (!node || holds(*node, rule.holds)) continue;
    if (rule.otherwise == refuse) section.refuse(key, std::string(rule.words));
    notes.push_back(text(rule.path, " (", rule.words, ")"));
  }
  for (const auto& name : within) {
    if (read.count(name)) continue;
    auto inner = section.section(name);
    settle_keys(inner, prefix + name + ".", notes);
    inner.finish();
  }
}

}  // namespace zeropp::deepspeed
