// SPDX-License-Identifier: Apache-2.0
// A JSON file of settings as a tree that knows the line of each key.
#pragma once

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// How a file is read. `deepspeed`: comments and commas before a closing bracket are skipped, "auto" and null leave a
/// key unsaid, and a key that begins with _ is a comment.
enum class ConfigDialect { json, deepspeed };

namespace detail {

/// A value of the file with the line it stands on.
struct ConfigNode {
  int line = 1;
  bool unsaid = false;   ///< "auto" or null, where the dialect takes both for a key that is not there
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
  ConfigBuilder(const std::string& path, const int& line, std::string_view content, ConfigDialect dialect)
      : path_(path), line_(line), content_(content), dialect_(dialect) {}
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
    auto& node = place();
    node.unsaid = dialect_ == ConfigDialect::deepspeed && (value.is_null() || value == "auto");
    node.value = std::move(value);
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
  ConfigDialect dialect_;
  std::string key_;
  int key_line_ = 1;
  std::vector<ConfigNode*> open_;
};

}  // namespace detail

}  // namespace zeropp
