// SPDX-License-Identifier: Apache-2.0
// manifest.json of a checkpoint: what was saved by which run, and the size and checksum of every file and tensor. It
// carries a checksum of itself, so no bit of a checkpoint can change unseen.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/version.hpp>
#include <zeropp/train/checkpoint/safetensors_writer.hpp>

namespace zeropp {

struct Manifest {
  static constexpr std::int64_t newest_format = 3;  ///< 1: data ranks only; 2: settings in config.json
  static constexpr const char* file_name = "manifest.json";
  struct Shape {
    std::string name;
    std::vector<std::int64_t> shape;
  };

  std::int64_t format = newest_format;
  std::string library = text(version_major, ".", version_minor, ".", version_patch);
  std::int64_t step = 0;
  std::string follows = {};  ///< the checkpoint that this run saved or loaded before (CheckpointStore::identity)
  std::int64_t ranks = 1;    ///< so many optimizer files
  std::int64_t tensor = 1, pipeline = 1;  ///< ranks of these axes
  std::int64_t stage = 0;
  std::string precision = {}, naming = {};
  std::vector<Shape> parameters = {};  ///< in the order of the model
  std::vector<FileRecord> files = {};

  static std::string optimizer_file(std::int64_t rank, std::int64_t ranks) {
    return text("optimizer-", padded(rank, 5), "-of-", padded(ranks, 5), ".safetensors");
  }
  static std::string padded(std::int64_t number, std::size_t digits) {
    auto out = text(number);
    return out.size() < digits ? std::string(digits - out.size(), '0') + out : out;
  }
  /// The file of the run's settings.
  const char* settings_file() const { return format < 3 ? "config.json" : "training.json"; }
  /// The i-th file of a checkpoint: ranks + 3 files are the library's, those behind them the program's.
  std::string name_of_file(std::size_t i) const {
    const std::array<const char*, 3> first{settings_file(), "state.json", "model.safetensors"};
    return i < first.size() ? first[i] : optimizer_file(static_cast<std::int64_t>(i - first.size()), ranks);
  }
  std::size_t own_files() const { return static_cast<std::size_t>(ranks) + 3; }
  /// Whether a program may keep a file of this name in a checkpoint.
  static bool allows(std::string_view name) {
    const auto plain = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
             c == '-';
    };
    return !name.empty() && name.size() <= 64 && name[0] != '.' && std::all_of(name.begin(), name.end(), plain) &&
           name != file_name && name != "training.json" && name != "state.json" && name != "model.safetensors" &&
           !name.starts_with("optimizer-");
  }
  const FileRecord& file(const std::string& name) const {
    for (auto& record : files)
      if (record.name == name) return record;
    throw DataError(text(file_name, " names no file ", name));
  }

  std::string to_text() const;
  /// Throws DataError that begins with `path` for anything but what to_text() wrote, hostile names among it.
  static Manifest from_text(const std::string& content, const std::string& path);
};

inline nlohmann::json to_json(const FileRecord& file) {
  auto tensors = nlohmann::json::array();
  for (auto& t : file.tensors)
    tensors.push_back({{"name", t.name}, {"begin", t.begin}, {"end", t.end}, {"xxh3", checksum_text(t.checksum)}});
  return {{"name", file.name}, {"bytes", file.bytes}, {"xxh3", checksum_text(file.checksum)}, {"tensors", tensors}};
}

inline FileRecord file_record_from(const nlohmann::json& json, const std::string& path) {
  const auto checksum = [&](const nlohmann::json& of) {
    const auto& digits = json_string(of, "xxh3", path);
    std::uint64_t value = 0;
    for (char c : digits) value = value << 4 | static_cast<std::uint64_t>((c <= '9' ? c - '0' : c - 'a' + 10) & 15);
    if (checksum_text(value) != digits) throw DataError(text(path, ": ", digits, " is no checksum"));
    return value;
  };
  FileRecord file{json_string(json, "name", path), json_count(json, "bytes", path), checksum(json)};
  std::int64_t at = 0;
  for (auto& entry : json_array(json, "tensors", path)) {
    FileRecord::Part tensor{json_string(entry, "name", path), json_count(entry, "begin", path),
                            json_count(entry, "end", path), checksum(entry)};
    if (tensor.begin < at || tensor.end < tensor.begin || tensor.end > file.bytes)
      throw DataError(text(path, ": tensor ", tensor.name, " lies outside of ", file.name));
    at = tensor.end;
    file.tensors.push_back(std::move(tensor));
  }
  return file;
}

inline std::string Manifest::to_text() const {
  const auto mesh = nlohmann::json{{"data", ranks / (tensor * pipeline)}, {"tensor", tensor}, {"pipeline", pipeline}};
  auto content = nlohmann::json{{"format", format},   {"library", library},     {"step", step},
                                {"follows", follows}, {"ranks", ranks},         {"mesh", mesh},
                                {"stage", stage},     {"precision", precision}, {"naming", naming}};
  content["parameters"] = content["files"] = nlohmann::json::array();
  for (auto& p : parameters) content["parameters"].push_back({{"name", p.name}, {"shape", p.shape}});
  for (auto& f : files) content["files"].push_back(to_json(f));
  const auto checksum = checksum_text(Checksum::of(content.dump()));
  return nlohmann::json{{"checkpoint", std::move(content)}, {"xxh3", checksum}}.dump(1) + "\n";
}

inline Manifest Manifest::from_text(const std::string& content, const std::string& path) {
  const auto json = parse_strict_json(content, path);
  const auto& root = json_member(json, "checkpoint", path);
  Manifest m;
  m.format = json_count(root, "format", path);
  if (m.format > newest_format)
    throw DataError(text(path, " is of format ", m.format, ", this library reads up to ", newest_format,
                         "; use a newer version of it"));
  if (json.size() != 2 || checksum_text(Checksum::of(root.dump())) != json_string(json, "xxh3", path))
    throw DataError(text("checksum of ", path, " differs from its contents: it is damaged"));
  m.library = json_string(root, "library", path);
  m.step = json_count(root, "step", path);
  m.follows = json_string(root, "follows", path);
  m.ranks = json_count(root, "ranks", path);
  if (m.format > 1) {
    const auto& mesh = json_member(root, "mesh", path);
    m.tensor = json_count(mesh, "tensor", path);
    m.pipeline = json_count(mesh, "pipeline", path);
  }
  m.stage = json_count(root, "stage", path);
  m.precision = json_string(root, "precision", path);
  m.naming = json_string(root, "naming", path);
  for (auto& entry : json_array(root, "parameters", path)) {
    Shape p{json_string(entry, "name", path), {}};
    for (auto& extent : json_array(entry, "shape", path)) {
      if (!extent.is_number_unsigned()) throw DataError(text(path, ": the shape of ", p.name, " is no list of sizes"));
      p.shape.push_back(extent.get<std::int64_t>());
    }
    m.parameters.push_back(std::move(p));
  }
  for (auto& entry : json_array(root, "files", path)) m.files.push_back(file_record_from(entry, path));
  if (m.ranks < 1 || m.files.size() < m.own_files() || (m.format < 3 && m.files.size() != m.own_files()))
    throw DataError(text(path, " lists ", m.files.size(), " files for ", m.ranks, " ranks"));
  if (m.tensor < 1 || m.tensor > m.ranks || m.pipeline < 1 || m.ranks % m.pipeline || m.ranks / m.pipeline % m.tensor)
    throw DataError(text(path, " says that ", m.ranks, " ranks are ", m.tensor, " tensor x ", m.pipeline,
                         " pipeline ranks x a number of data ranks; they cannot be"));
  // Only the names that a checkpoint has are ever opened: no "../x", no absolute path.
  for (std::size_t i = 0; i < m.own_files(); ++i)
    if (const auto wanted = m.name_of_file(i); m.files[i].name != wanted)
      throw DataError(text(path, " names the file ", m.files[i].name, " where a checkpoint has ", wanted));
  for (auto i = m.own_files(); i < m.files.size(); ++i)
    if (const auto& name = m.files[i].name; !Manifest::allows(name) || &m.file(name) != &m.files[i])
      throw DataError(text(path, " names the file ", nlohmann::json(name).dump(), ", which no program keeps there"));
  return m;
}

/// Reads a file and compares it with its record. Throws DataError that names the file and the tensor that differs.
inline void verify_file(FileSystem& files, const std::string& folder, const FileRecord& record) {
  auto file = File::read(files, folder + "/" + record.name);
  if (file.size() != record.bytes)
    throw DataError(text(file.path(), " holds ", file.size(), " bytes, the manifest says ", record.bytes,
                         file.size() < record.bytes ? ": it is truncated" : ""));
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::int64_t>(record.bytes, 1 << 20)));
  Checksum whole;
  std::int64_t at = 0;
  const auto read_to = [&](std::int64_t end) {
    Checksum part;
    while (at < end) {
      const auto piece = std::span{buffer}.first(std::min(buffer.size(), static_cast<std::size_t>(end - at)));
      file.read_at(at, piece);
      whole.add(piece);
      part.add(piece);
      at += static_cast<std::int64_t>(piece.size());
    }
    return part.value();
  };
  for (auto& tensor : record.tensors) {
    read_to(tensor.begin);
    if (read_to(tensor.end) != tensor.checksum)
      throw DataError(text("checksum of tensor ", tensor.name, " in ", file.path(), " differs: it is damaged"));
  }
  read_to(record.bytes);
  if (whole.value() != record.checksum)
    throw DataError(
        text("checksum of ", record.tensors.empty() ? "" : "the header of ", file.path(), " differs: it is damaged"));
}

}  // namespace zeropp
