// SPDX-License-Identifier: Apache-2.0
// Token files as other projects lay them out: nanoGPT's folder with train.bin and val.bin, llm.c's shards, Megatron's
// .bin and .idx.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/app/data/corpus.hpp>

namespace zeropp {

struct TokenFolder {
  std::vector<std::string> training, validation;  ///< paths

  /// The *.bin of a folder: those with the word "val" in their names are for validation, with "test" for nothing.
  static TokenFolder of(FileSystem& files, const std::string& folder) {
    TokenFolder found;
    for (auto& name : files.list(folder)) {
      if (!name.ends_with(".bin") || holds_word(name, {"test"}) || name == "pytorch_model.bin") continue;
      const bool held_out = holds_word(name, {"val", "valid", "validation", "eval"});
      (held_out ? found.validation : found.training).push_back(folder + "/" + name);
    }
    if (found.training.empty() && !found.validation.empty())
      throw DataError(
          text(folder, " holds tokens for validation, ", found.validation[0], ", but no other *.bin to train on"));
    return found;
  }

 private:
  /// Whether a run of letters of the name is one of these.
  static bool holds_word(std::string_view name, std::initializer_list<std::string_view> words) {
    for (std::size_t begin = 0, end = 0; begin < name.size(); begin = end + 1) {
      const auto letter = [&](std::size_t i) { return (name[i] | 32) >= 'a' && (name[i] | 32) <= 'z'; };
      for (end = begin; end < name.size() && letter(end);) ++end;
      if (std::find(words.begin(), words.end(), name.substr(begin, end - begin)) != words.end()) return true;
    }
    return false;
  }
};

/// Opens one token file as the options and its contents say.
inline std::shared_ptr<const TokenSource> open_tokens(FileSystem& files, const std::string& path,
                                                      const std::string& format, std::int64_t vocabulary) {
  using Format = FileTokens::Format;
  const auto make = [&](Format as) { return std::make_shared<FileTokens>(path, vocabulary, as, files); };
  if (format == "raw") return make(Format::raw_uint16);
  if (format == "raw32") return make(Format::raw_uint32);
  const auto dot = path.rfind('.'), slash = path.rfind('/') + 1;
  if (files.kind(path.substr(0, dot) + ".idx") != FileSystem::Kind::nothing) return make(Format::megatron);
  const auto name = path.substr(slash);
  auto file = File::read(files, path, File::Links::follow);
  const bool known = file.size() > 0 && kind_of_file(file);
  const bool nano = name == "train.bin" || name == "val.bin";  // without a header, by their names
  return make(nano && !known ? Format::raw_uint16 : Format::llm_c);
}

/// All of them, end to end.
inline std::shared_ptr<const TokenSource> open_tokens(FileSystem& files, const std::vector<std::string>& paths,
                                                      const std::string& format, std::int64_t vocabulary) {
  std::vector<std::shared_ptr<const TokenSource>> parts;
  for (auto& path : paths) parts.push_back(open_tokens(files, path, format, vocabulary));
  if (parts.size() == 1) return parts[0];
  return std::make_shared<JoinedTokens>(std::move(parts));
}

}  // namespace zeropp
