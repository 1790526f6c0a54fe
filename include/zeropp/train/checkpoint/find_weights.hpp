// SPDX-License-Identifier: Apache-2.0
// Finds the weights that a path means: a file of safetensors, an index of several, a folder with either, or a model in
// the cache of the Hugging Face hub (snapshots that consist of links into a folder of blobs).
#pragma once

#include <string>
#include <string_view>

#include <zeropp/train/checkpoint/file_kind.hpp>

namespace zeropp {

struct WeightsFound {
  std::string folder;  ///< config.json and tokenizer.json lie here, if anywhere
  std::string file;    ///< the safetensors file, or the index
  bool index = false;
};

namespace detail {

/// The snapshot of a folder models--OWNER--NAME of the hub's cache: the one of refs/main, or the only one; any other
/// folder as it is.
inline std::string snapshot_of(FileSystem& files, const std::string& folder) {
  const auto snapshots = folder + "/snapshots", main = folder + "/refs/main";
  if (files.kind(snapshots) != FileSystem::Kind::folder) return folder;
  if (files.kind(main) == FileSystem::Kind::file) {
    auto revision = read_text(files, main, 256);
    while (!revision.empty() && revision.back() <= ' ') revision.pop_back();
    if (!revision.empty() && revision.find('/') == revision.npos && revision[0] != '.')
      if (const auto path = snapshots + "/" + revision; files.kind(path) == FileSystem::Kind::folder) return path;
  }
  const auto all = files.list(snapshots);
  if (all.size() == 1) return snapshots + "/" + all[0];
  throw DataError(
      text(folder, " holds ", all.size(), " snapshots and no refs/main that names one; give the folder of one"));
}

}  // namespace detail

/// Throws DataError, with what to do, where there are none.
inline WeightsFound find_weights(FileSystem& files, const std::string& path) {
  constexpr auto nothing = FileSystem::Kind::nothing;
  if (files.kind(path + "/.") == nothing) {  // with the dot a link is followed
    const auto slash = path.rfind('/');
    const auto folder = slash == path.npos ? std::string(".") : path.substr(0, slash);
    return {folder, path, path.ends_with(".index.json")};
  }
  const auto folder = detail::snapshot_of(files, path);
  const auto single = folder + "/model.safetensors", index = single + ".index.json";
  if (files.kind(single) != nothing) return {folder, single};
  if (files.kind(index) != nothing) return {folder, index, true};
  for (const std::string_view other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5",
                                       "flax_model.msgpack", "model.ckpt.index", "adapter_model.safetensors"})
    if (files.kind(text(folder, "/", other)) != nothing)
      throw DataError(text(folder, " holds ", other, " but no model.safetensors; ",
                           other.starts_with("adapter") ? "an adapter is merged into its model first, in Python"
                                                        : detail::to_safetensors));
  throw DataError(
      text(folder, " holds neither model.safetensors nor model.safetensors.index.json; ", detail::no_weights));
}

/// Throws DataError where `path` is a link that leads out of `folder`, unless into the blobs of the hub's cache that
/// holds the folder.
inline void expect_inside(FileSystem& files, const std::string& folder, const std::string& path) {
  if (files.kind(path) != FileSystem::Kind::other) return;
  const auto target = files.resolved(path), own = files.resolved(folder);
  const auto cache = own.substr(0, own.rfind('/'));
  if (target.starts_with(own + "/")) return;
  if (cache.ends_with("/snapshots") && target.starts_with(cache.substr(0, cache.rfind('/')) + "/blobs/")) return;
  throw DataError(
      text(path, " leads to ", target, ", out of its folder: a symbolic link is not followed there; copy the file"));
}

}  // namespace zeropp
