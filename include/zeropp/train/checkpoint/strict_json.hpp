// SPDX-License-Identifier: Apache-2.0
// JSON of files that may be damaged or hostile: duplicate keys, deep nesting and text that is not UTF-8 are refused,
// with the path and the byte.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// Parses all of `content`. Throws DataError that begins with `path`.
inline nlohmann::json parse_strict_json(std::string_view content, const std::string& path) {
  using Event = nlohmann::json::parse_event_t;
  constexpr int deepest = 64;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, Event event, nlohmann::json& value) {
    if (depth > deepest) throw DataError(text(path, " nests deeper than ", deepest, " levels; it is not ours"));
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second)
      throw DataError(text(path, " holds the key ", value.dump(), " twice"));
    return true;
  };
  try {
    return nlohmann::json::parse(content.begin(), content.end(), watch);
  } catch (const nlohmann::json::exception& error) {
    throw DataError(text(path, " is not valid JSON: ", error.what()));
  }
}

/// The member `key` of an object. Throws DataError that begins with `path`.
inline const nlohmann::json& json_member(const nlohmann::json& object, const char* key, const std::string& path) {
  if (!object.is_object() || !object.contains(key)) throw DataError(text(path, " lacks the member \"", key, "\""));
  return object[key];
}

inline std::int64_t json_count(const nlohmann::json& object, const char* key, const std::string& path) {
  const auto& value = json_member(object, key, path);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    throw DataError(text(path, ": \"", key, "\" must be an integer from 0 to 2^63 - 1, got ", value.dump()));
  return value.get<std::int64_t>();
}

inline const std::string& json_string(const nlohmann::json& object, const char* key, const std::string& path) {
  const auto& value = json_member(object, key, path);
  if (!value.is_string()) throw DataError(text(path, ": \"", key, "\" must be a string, got ", value.dump()));
  return value.get_ref<const std::string&>();
}

inline const nlohmann::json& json_array(const nlohmann::json& object, const char* key, const std::string& path) {
  const auto& value = json_member(object, key, path);
  if (!value.is_array()) throw DataError(text(path, ": \"", key, "\" must be an array, got ", value.type_name()));
  return value;
}

}  // namespace zeropp
