// SPDX-License-Identifier: Apache-2.0
// Settings from a JSON file. Every error names the file, the line and the key; a key that nobody reads is refused with
// the nearest one that exists, so nothing is accepted and ignored.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// The name closest to `word` by edit distance.
inline std::string nearest_name(std::string_view word, const std::vector<std::string>& names) {
  std::string best;
  std::size_t least = ~std::size_t{0};
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

namespace detail {

/// A value of the file with the line it stands on.
struct ConfigNode {
  int line = 1;
  nlohmann::json value;  ///< of a leaf; null for objects and arrays
  enum class Kind { leaf, object, array } kind = Kind::leaf;
  std::vector<std::pair<std::string, std::unique_ptr<ConfigNode>>> members = {};  ///< an array's have empty names
};

/// Walks the text and counts lines as the parser consumes it.
struct CountingIterator {
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;
  const char* at;
  int* line;
  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    if (*at == '\n') ++*line;
    ++at;
    return *this;
  }
  CountingIterator operator++(int) { return std::exchange(*this, CountingIterator(*this).operator++()); }
  friend bool operator==(const CountingIterator& a, const CountingIterator& b) { return a.at == b.at; }
  friend bool operator!=(const CountingIterator& a, const CountingIterator& b) { return a.at != b.at; }
};

/// Builds the tree from the parser's events.
class ConfigBuilder : public nlohmann::json::json_sax_t {
 public:
  ConfigBuilder(const std::string& path, const int& line, std::string_view content)
      : path_(path), line_(line), content_(content) {}
  ConfigNode root;

  bool null() override { return leaf(nullptr); }
  bool boolean(bool v) override { return leaf(v); }
  bool number_integer(number_integer_t v) override { return leaf(v); }
  bool number_unsigned(number_unsigned_t v) override { return leaf(v); }
  bool number_float(number_float_t v, const string_t&) override { return leaf(v); }
  bool string(string_t& v) override { return leaf(v); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(ConfigNode::Kind::object); }
  bool start_array(std::size_t) override { return open(ConfigNode::Kind::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    for (auto& [other, node] : open_.back()->members)
      if (other == name)
        throw ConfigError(
            text(path_, " line ", line_, ": the key \"", name, "\" stands there again, first on line ", node->line));
    key_ = name;
    key_line_ = line_;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    const auto end = content_.begin() + static_cast<std::ptrdiff_t>(std::min(position, content_.size()));
    const std::string_view what = error.what();
    throw ConfigError(text(path_, " line ", 1 + std::count(content_.begin(), end, '\n'),
                           ": not valid JSON: ", what.substr(std::min(what.size(), what.find("] ") + 2))));
  }

 private:
  ConfigNode& place() {
    if (open_.empty()) {
      root.line = line_;
      return root;
    }
    auto& parent = *open_.back();
    const bool named = parent.kind == ConfigNode::Kind::object;
    parent.members.emplace_back(named ? key_ : std::string(), std::make_unique<ConfigNode>());
    parent.members.back().second->line = named ? key_line_ : line_;
    return *parent.members.back().second;
  }
  bool leaf(nlohmann::json value) {
    place().value = std::move(value);
    return true;
  }
  bool open(ConfigNode::Kind kind) {
    auto& node = place();
    node.kind = kind;
    open_.push_back(&node);
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& path_;
  const int& line_;
  std::string_view content_;
  std::string key_;
  int key_line_ = 1;
  std::vector<ConfigNode*> open_;
};

}  // namespace detail

/// One object of the file. Read what you know, then finish(): what was not read is refused.
class ConfigSection {
 public:
  /// `name` is empty for the whole file. `node` null: the section is not there, and reads find nothing.
  ConfigSection(std::string path, std::string name, const detail::ConfigNode* node)
      : path_(std::move(path)), name_(std::move(name)), node_(node) {
    if (node && node->kind != detail::ConfigNode::Kind::object)
      fail(*node, name_.empty() ? "the file" : name_, "an object");
  }

  bool present() const { return node_ != nullptr; }
  bool has(const std::string& key) const { return find(key) != nullptr; }
  /// Line of a key that is there.
  int line(const std::string& key) const { return find(key)->line; }

  ConfigSection section(const std::string& key) {
    known_.push_back(key);
    return {path_, full(key), find(key)};
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
    for (const auto& [key, node] : node_->members)
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        throw ConfigError(text(path_, " line ", node->line, ": unknown key \"", key, "\"",
                               name_.empty() ? std::string() : text(" in \"", name_, "\""),
                               "; the nearest that exists is \"", nearest_name(key, known_), "\""));
  }

  /// A refusal at the line of a key.
  [[noreturn]] void refuse(const std::string& key, const std::string& sentence) const {
    throw ConfigError(text(path_, " line ",
                           find(key) ? line(key)
                           : node_   ? node_->line
                                     : 1,
                           ": \"", full(key), "\" ", sentence));
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
  const detail::ConfigNode* find(const std::string& key) const {
    if (node_)
      for (auto& [name, node] : node_->members)
        if (name == key) return node.get();
    return nullptr;
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
  std::vector<std::string> known_;
};

/// A whole file; sections point into it.
class ConfigFile {
 public:
  /// Throws ConfigError with the line: syntax, a key twice, something other than an object.
  ConfigFile(std::string path, const std::string& content) : path_(std::move(path)) {
    int line = 1;
    detail::ConfigBuilder builder(path_, line, content);
    const detail::CountingIterator begin{content.data(), &line}, end{content.data() + content.size(), &line};
    nlohmann::json::sax_parse(begin, end, &builder);
    root_ = std::move(builder.root);
  }
  ConfigSection root() const { return {path_, "", &root_}; }

 private:
  std::string path_;
  detail::ConfigNode root_;
};

}  // namespace zeropp
