// SPDX-License-Identifier: Apache-2.0
// Text from a file, or from all *.txt files of a folder in the order of their names.
#pragma once

#include <string>

#include <zeropp/train/checkpoint/file.hpp>

namespace zeropp {

/// The bytes as they are. Throws DataError: nothing there, no *.txt in the folder, or no text in them.
inline std::string load_text(const std::string& path, FileSystem& files = FileSystem::system()) {
  const auto whole = [&](const std::string& name) {
    auto file = File::read(files, name, File::Links::follow);
    std::string content(static_cast<std::size_t>(file.size()), '\0');
    file.read_at(0, std::as_writable_bytes(std::span{content}));
    return content;
  };
  const bool folder = files.kind(path + "/.") == FileSystem::Kind::folder;  // with the dot a link is followed
  std::string all;
  std::size_t found = 0;
  if (folder) {
    for (const auto& name : files.list(path))
      if (name.size() > 4 && name.ends_with(".txt")) all += whole(path + "/" + name), ++found;
    if (!found) throw DataError(text(path, " holds no *.txt file; give a text file, or a folder with some"));
  } else {
    all = whole(path);
  }
  if (all.empty()) throw DataError(text(path, " holds no text: it is empty"));
  return all;
}

}  // namespace zeropp
