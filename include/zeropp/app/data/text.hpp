// SPDX-License-Identifier: Apache-2.0
// Text from a file, or from all *.txt files of a folder in the order of their names; and where it is cut in two.
#pragma once

#include <string>
#include <string_view>

#include <zeropp/train/checkpoint/file_kind.hpp>

namespace zeropp {

/// Throws DataError, with what to do, where the bytes are not text.
inline void expect_text(const std::string& path, std::string_view content) {
  if (const auto* kind = kind_of_file(content.substr(0, 4096)); kind && !kind->as_data.empty())
    throw DataError(text(path, " is ", kind->name, ", not text; ", kind->as_data));
  if (const auto zero = content.find('\0'); zero != content.npos)
    throw DataError(text(path, " is not text: its byte ", zero,
                         " is 0; if it holds tokens, give --data-format raw (uint16) "
                         "or raw32"));
}

/// The bytes as they are. Throws DataError: nothing there, no *.txt in the folder, no text in them, or something else.
inline std::string load_text(const std::string& path, FileSystem& files = FileSystem::system()) {
  const auto whole = [&](const std::string& name) {
    auto file = File::read(files, name, File::Links::follow);
    std::string content(static_cast<std::size_t>(file.size()), '\0');
    file.read_at(0, std::as_writable_bytes(std::span{content}));
    expect_text(name, content);
    return content;
  };
  const bool folder = files.kind(path + "/.") == FileSystem::Kind::folder;  // with the dot a link is followed
  std::string all;
  std::size_t found = 0;
  if (folder) {
    for (const auto& name : files.list(path))
      if (name.size() > 4 && name.ends_with(".txt")) all += whole(path + "/" + name), ++found;
    if (!found)
      throw DataError(text(path, " holds no *.txt file, and no tokens in *.bin; give a text file, or a folder with some"));
  } else {
    all = whole(path);
  }
  if (all.empty()) throw DataError(text(path, " holds no text: it is empty"));
  return all;
}

/// Where the last `fraction` of a text begins: at the end of a line; where that would leave less than half of it, at
/// white space; else between two characters.
inline std::size_t held_out_begin(std::string_view text, double fraction) {
  const auto wanted = static_cast<std::size_t>(static_cast<double>(text.size()) * fraction);
  const auto begin = text.size() - wanted;
  for (const std::string_view between : {"\n", " \t\r\f\v"})
    if (const auto at = text.find_first_of(between, begin); at != text.npos && text.size() - at > wanted / 2) return at;
  auto at = begin;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80)
    ++at;  // of UTF-8: inside a character
  return at;
}

}  // namespace zeropp
