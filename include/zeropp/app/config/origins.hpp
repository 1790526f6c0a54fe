// SPDX-License-Identifier: Apache-2.0
// Where the value of each setting came from, under the name that the setting has in lists: a flag, a key of a file, a
// default. Refusals name it, and a plan prints it.
#pragma once

#include <map>
#include <string>

#include <zeropp/base/error.hpp>

namespace zeropp {

class Origins {
 public:
  /// `words`: "ds.json line 4, optimizer.params.lr".
  void from_file(const std::string& setting, std::string words) { all_[setting] = {Kind::file, std::move(words)}; }
  void from_flag(const std::string& setting, std::string words = "flag") {
    all_[setting] = {Kind::flag, std::move(words)};
  }
  /// A value that nobody gave: "DeepSpeed's default", "of the other batch sizes".
  void by_default(const std::string& setting, std::string words) {
    all_[setting] = {Kind::by_default, std::move(words)};
  }

  bool flag(const std::string& setting) const { return kind(setting) == Kind::flag; }
  bool file(const std::string& setting) const { return kind(setting) == Kind::file; }
  bool said(const std::string& setting) const { return flag(setting) || file(setting); }
  /// Whether anything was noted of it, a default of DeepSpeed's among that.
  bool noted(const std::string& setting) const { return all_.contains(setting); }
  /// For a list of settings: "flag", "ds.json line 4, optimizer.params.lr", "default".
  std::string of(const std::string& setting) const {
    const auto found = all_.find(setting);
    return found == all_.end() ? "default" : found->second.words;
  }
  /// For a sentence: the setting, and the place in a file that said it.
  std::string name(const std::string& setting) const {
    return file(setting) ? text(setting, " (", of(setting), ")") : setting;
  }

 private:
  enum class Kind { by_default, file, flag };
  struct Origin {
    Kind kind;
    std::string words;
  };
  Kind kind(const std::string& setting) const {
    const auto found = all_.find(setting);
    return found == all_.end() ? Kind::by_default : found->second.kind;
  }
  std::map<std::string, Origin> all_;
};

}  // namespace zeropp
