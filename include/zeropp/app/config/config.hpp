// SPDX-License-Identifier: Apache-2.0
// Settings from a JSON file. Every error names the file, the line and the key; a key that nobody reads is refused with
// the nearest one that exists, so nothing is accepted and ignored.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/app/config/config_tree.hpp>
#include <zeropp/app/config/relaxed_json.hpp>

namespace zeropp {

/// The name closest to `word` by edit distance; empty where more than a third of the letters, or one, would differ.
inline std::string near_name(std::string_view word, const std::vector<std::string>& names) {
  std::string best;
  std::size_t least = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const auto& name : names) {
    std::vector<std::size_t> row(name.size() + 1);
    for (std::size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= word.size(); ++i) {
      auto diagonal = std::exchange(row[0], i);
      for (std::size_t j = 1; j <= name.size(); ++j)
        diagonal =
            std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] != name[j - 1])}));
    }
    if (row.back() < least) least = row.back(), best = name;
  }
  return best;
}

/// One object of the file. Read what you know, then finish(): what was not read is refused.
class ConfigSection {
 public:
  /// `name` is empty for the whole file. `node` null: the section is not there, and reads find nothing.
  ConfigSection(std::string path, std::string name, const detail::ConfigNode* node,
                ConfigDialect dialect = ConfigDialect::json)
      : path_(std::move(path)), name_(std::move(name)), node_(node), dialect_(dialect) {
    if (node && node->kind != detail::ConfigNode::Kind::object)
      fail(*node, name_.empty() ? "the file" : name_, "an object");
  }

  bool present() const { return node_ != nullptr; }
  bool has(const std::string& key) const { return find(key) != nullptr; }
  /// Whether the key stands there without a value of its own: "auto" or null.
  bool unsaid(const std::string& key) const { return member(key) && !find(key); }
  /// Where a key that is there stands: "ds.json line 4, optimizer.params.lr".
  std::string place(const std::string& key) const { return text(path_, " line ", member(key)->line, ", ", full(key)); }
  /// The value under a key that the caller knows, whatever it is; null: nothing.
  const detail::ConfigNode* node(const std::string& key) {
    known_.push_back(key);
    return member(key);
  }

  ConfigSection section(const std::string& key) {
    known_.push_back(key);
    return {path_, full(key), find(key), dialect_};
  }

  /// Sets `into` where the key is there. Throws ConfigError for another type or a value outside [low, high].
  template <class T>
  bool read(const std::string& key, T& into, double low = -1e300, double high = 1e300) {
    known_.push_back(key);
    const auto* node = find(key);
    if (!node) return false;
    into = convert<T>(*node, full(key), low, high);
    return true;
  }
  /// An array of numbers of a fixed size.
  template <std::size_t N>
  bool read(const std::string& key, std::array<float, N>& into, double low, double high) {
    known_.push_back(key);
    const auto* node = find(key);
    if (!node) return false;
    if (node->kind != detail::ConfigNode::Kind::array || node->members.size() != N)
      fail(*node, full(key), text("an array of ", N, " numbers"));
    for (std::size_t i = 0; i < N; ++i)
      into[i] = convert<float>(*node->members[i].second, text(full(key), "[", i, "]"), low, high);
    return true;
  }

  /// Refuses keys that were not asked for.
  void finish() const {
    if (!node_) return;
    const bool comments = dialect_ == ConfigDialect::deepspeed;
    for (const auto& [key, node] : node_->members) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end() || (comments && key.starts_with('_'))) continue;
      const auto near = near_name(key, known_);
      throw ConfigError(text(path_, " line ", node->line, ": unknown key \"", key, "\"",
                             name_.empty() ? std::string() : text(" in \"", name_, "\""), "; ",
                             near.empty() ? text("none is near it: take it out", comments ? ", or begin it with _" : "")
                                          : text("the nearest that exists is \"", near, "\"")));
    }
  }

  /// A refusal at the line of a key.
  [[noreturn]] void refuse(const std::string& key, const std::string& sentence) const {
    const auto* at = member(key) ? member(key) : node_;
    throw ConfigError(text(path_, " line ", at ? at->line : 1, ": \"", full(key), "\" ", sentence));
  }
  /// Returns the result of make(). A ConfigError of make() becomes a refusal at the line of a key: `what`, and its
  /// sentence.
  template <class F>
  auto made(const std::string& key, std::string_view what, F&& make) const {
    try {
      return make();
    } catch (const ConfigError& error) {
      refuse(key, text(what, ": ", error.what()));
    }
  }

 private:
  const detail::ConfigNode* member(const std::string& key) const {
    if (node_)
      for (auto& [name, node] : node_->members)
        if (name == key) return node.get();
    return nullptr;
  }
  const detail::ConfigNode* find(const std::string& key) const {
    const auto* node = member(key);
    return node && !node->unsaid ? node : nullptr;
  }
  std::string full(const std::string& key) const { return name_.empty() ? key : name_ + "." + key; }
  [[noreturn]] void fail(const detail::ConfigNode& node, const std::string& key, std::string_view wanted) const {
    const auto found = node.kind == detail::ConfigNode::Kind::object  ? std::string("an object")
                       : node.kind == detail::ConfigNode::Kind::array ? std::string("an array")
                                                                      : node.value.dump();
    throw ConfigError(text(path_, " line ", node.line, ": \"", key, "\" must be ", wanted, ", got ", found));
  }
  template <class T>
  T convert(const detail::ConfigNode& node, const std::string& key, double low, double high) const {
    const auto& v = node.value;
    const bool leaf = node.kind == detail::ConfigNode::Kind::leaf;
    if constexpr (std::is_same_v<T, bool>) {
      if (!leaf || !v.is_boolean()) fail(node, key, "true or false");
      return v.get<bool>();
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!leaf || !v.is_string()) fail(node, key, "a string");
      return v.get<std::string>();
    } else {
      if (!leaf || !v.is_number() ||
          (std::is_integral_v<T> && !v.is_number_integer() &&
           !(v.get<double>() == std::floor(v.get<double>()) && std::abs(v.get<double>()) < 9e15)))
        fail(node, key, std::is_integral_v<T> ? "a whole number" : "a number");
      const double number = v.get<double>();
      if (!(number >= low && number <= high)) fail(node, key, range_text(low, high));
      return v.is_number_float() ? static_cast<T>(number) : v.get<T>();
    }
  }
  static std::string range_text(double low, double high) {
    return high > 1e299 ? text("at least ", low) : text("from ", low, " to ", high);
  }

  std::string path_, name_;
  const detail::ConfigNode* node_;
  ConfigDialect dialect_;
  std::vector<std::string> known_;
};

/// A whole file; sections point into it.
class ConfigFile {
 public:
  /// Throws ConfigError with the line: syntax, a key twice, something other than an object.
  ConfigFile(std::string path, std::string content, ConfigDialect dialect = ConfigDialect::json)
      : path_(std::move(path)), dialect_(dialect) {
    if (dialect == ConfigDialect::deepspeed) content = without_comments(path_, std::move(content));
    int line = 1;
    detail::ConfigBuilder builder(path_, line, content, dialect);
    const detail::CountingIterator begin{content.data(), &line}, end{content.data() + content.size(), &line};
    nlohmann::json::sax_parse(begin, end, &builder);
    root_ = std::move(builder.root);
  }
  ConfigSection root() const { return {path_, "", &root_, dialect_}; }

 private:
  std::string path_;
  ConfigDialect dialect_;
  detail::ConfigNode root_;
};

}  // namespace zeropp
