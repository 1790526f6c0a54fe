// SPDX-License-Identifier: Apache-2.0
// The history of a run that goes on: the lines of a log that stay, written beside it and renamed, so that a kill between
// loses none of them.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace zeropp {

/// Makes `path` consist of `head` and those of its lines for which keep(line) holds; touches nothing where it does
/// already. A link to the file stays one. Returns what went wrong.
template <class F>
std::error_code keep_lines(const std::string& path, const std::string& head, F&& keep) {
  std::string old, kept = head;
  std::ifstream file(path, std::ios::binary);
  for (std::string line; std::getline(file, line); old += line + "\n")
    if (keep(line)) kept += line + "\n";
  std::error_code error;
  if (kept == old && std::filesystem::file_size(path, error) == kept.size()) return {};
  const auto place = std::filesystem::weakly_canonical(path, error);
  auto beside = place;
  beside += ".new";
  if (!error && !(std::ofstream(beside, std::ios::binary | std::ios::trunc) << kept << std::flush))
    error = std::make_error_code(std::errc::io_error);
  if (!error) std::filesystem::rename(beside, place, error);
  return error;
}

}  // namespace zeropp
