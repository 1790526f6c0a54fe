// SPDX-License-Identifier: Apache-2.0
// Makes of a checkpoint a folder that other libraries load: weights without the padding of the vocabulary, and the
// program's small files, config.json and tokenizer.json among them. It reads files alone and needs no model.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/train/checkpoint/load_checkpoint.hpp>
#include <zeropp/train/checkpoint/naming.hpp>
#include <zeropp/train/checkpoint/store.hpp>

namespace zeropp {

/// A checkpoint's folder and its small files, verified. `path` is that folder, a run's, or that of a run's checkpoints.
/// Throws DataError.
struct OpenedCheckpoint {
  std::string folder;
  Manifest manifest;
  detail::CheckpointTexts texts;

  /// The newest whole one of a run's `latest` checkpoint and those before it; weights are verified if asked for.
  static OpenedCheckpoint find(FileSystem& files, const std::string& path, bool weights = true) {
    if (files.kind(path + "/" + Manifest::file_name) != FileSystem::Kind::nothing) return open(files, path, weights);
    const auto inner = path + "/checkpoints";
    const CheckpointStore store(files, files.kind(inner) == FileSystem::Kind::folder ? inner : path);
    std::vector<std::string> refused;
    for (auto& name : store.candidates(refused)) try {
        return open(files, store.path(name), weights);
      } catch (const DataError& error) {
        refused.push_back(error.what());
      }
    std::string why;
    for (auto& sentence : refused) why += "; " + sentence;
    throw DataError(text(path, " holds no whole checkpoint", why));
  }

 private:
  static OpenedCheckpoint open(FileSystem& files, const std::string& folder, bool weights) {
    OpenedCheckpoint found{folder, {}, detail::CheckpointTexts::read(files, folder)};
    found.manifest = Manifest::from_text(found.texts.manifest, folder + "/" + Manifest::file_name);
    if (weights) verify_file(files, folder, found.manifest.file("model.safetensors"));
    return found;
  }
};

/// Copies a file of weights tensor by tensor; tensors with a row for each token keep the first `vocabulary` rows.
inline void copy_weights(FileSystem& files, const std::string& from, const std::string& folder, const Naming& naming,
                         std::int64_t vocabulary) {
  Safetensors source(files, from);
  std::vector<TensorSpec> specs;
  for (auto& tensor : source.tensors()) {
    auto shape = tensor.shape;
    if (naming.has_vocabulary_rows(tensor.name)) shape[0] = std::min(shape[0], vocabulary);
    if (!tensor.type.type)
      throw DataError(text(from, ": tensor ", tensor.name, " is ", tensor.type.name, ", which is not copied"));
    specs.push_back({tensor.name, *tensor.type.type, shape});
  }
  SafetensorsWriter writer(files, folder, "model.safetensors", specs, {{"format", "pt"}});
  std::vector<std::byte> buffer(1 << 20);
  auto bytes = File::read(files, from);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const auto& tensor = source.tensors()[i];
    const auto end = tensor.begin + element_count(specs[i].shape) * tensor.type.bytes;
    for (auto at = tensor.begin; at < end;) {
      const auto piece = std::span{buffer}.first(static_cast<std::size_t>(std::min<std::int64_t>(1 << 20, end - at)));
      bytes.read_at(at, piece);
      writer.append(std::span<const std::byte>{piece});
      at += static_cast<std::int64_t>(piece.size());
    }
  }
  writer.finish();
}

/// Writes the folder, which must not exist and appears when it is complete. Throws DataError.
inline void export_checkpoint(FileSystem& files, const OpenedCheckpoint& from, const std::string& given,
                              const std::vector<SmallFile>& small, std::int64_t vocabulary) {
  auto to = given;
  while (to.size() > 1 && to.back() == '/') to.pop_back();
  if (files.kind(to) != FileSystem::Kind::nothing)
    throw DataError(text(to, " is there already; name a folder that is not, nothing is overwritten"));
  const auto slash = to.rfind('/');
  const auto above = slash == to.npos ? std::string(".") : slash == 0 ? std::string("/") : to.substr(0, slash);
  const auto temporary = above + "/" + CheckpointStore::temporary(to.substr(slash == to.npos ? 0 : slash + 1));
  files.make_folders(above);
  files.remove(temporary);
  files.make_folder(temporary);
  copy_weights(files, from.folder + "/model.safetensors", temporary, Naming::called(from.manifest.naming), vocabulary);
  for (auto& file : small) CheckpointStore::write_file(files, temporary + "/" + file.name, file.content);
  files.sync_folder(temporary);
  files.rename(temporary, to);
  files.sync_folder(above);
}

}  // namespace zeropp
