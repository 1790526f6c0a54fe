// SPDX-License-Identifier: Apache-2.0
// The folder that holds the checkpoints of a run: step-00000100/, step-00000200/, latest. A checkpoint is written into
// a temporary folder and appears by one rename, when all of it is on the disk. One run at a time writes there.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/train/checkpoint/manifest.hpp>

namespace zeropp {

class CheckpointStore {
 public:
  CheckpointStore(FileSystem& files, std::string root) : files_(&files), root_(std::move(root)) {
    while (root_.size() > 1 && root_.back() == '/') root_.pop_back();
    if (root_.empty()) throw ConfigError("the path of the checkpoints is empty; name a folder");
  }

  FileSystem& files() const { return *files_; }
  const std::string& root() const { return root_; }
  std::string path(const std::string& name) const { return root_ + "/" + name; }

  static std::string name_of(std::int64_t step) { return "step-" + Manifest::padded(step, 8); }
  /// The step of a folder's name; nothing for any other name.
  static std::optional<std::int64_t> step_of(std::string_view name) {
    if (!name.starts_with("step-") || name.size() < 13 || name.size() > 23) return {};
    std::int64_t step = 0;
    for (char c : name.substr(5)) {
      if (c < '0' || c > '9') return {};
      step = 10 * step + (c - '0');
    }
    return name_of(step) == name ? std::optional{step} : std::nullopt;
  }

  /// Makes the folder where it is missing and keeps other runs out of it while this object lives. Throws DataError
  /// with the process that writes there.
  void lock() {
    files_->make_folders(root_);
    auto file = std::make_unique<File>(*files_, path(".lock"), O_RDWR | O_CREAT | O_CLOEXEC);
    if (files_->raw({"flock", file->path()},
                    [&](std::size_t) { return ::flock(file->descriptor(), LOCK_EX | LOCK_NB); }) < 0) {
      if (errno != EWOULDBLOCK) FileSystem::fail({"flock", file->path()}, errno);
      auto holder = read_text(*files_, file->path(), 4096);
      throw DataError(text("checkpoints in ", root_, " are being written by ",
                           holder.empty() ? "another process" : holder, "; end that run or choose another folder"));
    }
    files_->checked({"ftruncate", file->path()}, [&](std::size_t) { return ::ftruncate(file->descriptor(), 0); });
    char host[256] = {};
    ::gethostname(host, sizeof host - 1);
    file->write(text("process ", ::getpid(), " on ", std::string_view(host)));
    lock_ = std::move(file);
  }

  /// Folders of steps, oldest first.
  std::vector<std::string> steps() const {
    std::vector<std::string> names;
    if (files_->kind(root_) == FileSystem::Kind::nothing) return names;
    for (auto& name : files_->list(root_))
      if (step_of(name)) names.push_back(name);
    std::sort(names.begin(), names.end(), [](auto& a, auto& b) { return *step_of(a) < *step_of(b); });
    return names;
  }

  /// Brings back what a save had moved away to replace it when it died; needed where folders cannot be exchanged.
  void recover() const {
    if (files_->kind(root_) == FileSystem::Kind::nothing) return;
    for (auto& name : files_->list(root_))
      if (name.starts_with(replaced)) {
        const auto to = path(name.substr(replaced.size()));
        if (files_->kind(to) == FileSystem::Kind::nothing)
          files_->rename(path(name), to);
        else
          files_->remove(path(name));
      }
  }

  /// The folders to try, best first: what `latest` names, before it the one that was complete when a save died before
  /// it could rename `latest`, after it the older ones. Newer folders that do not follow `latest` belong to a run that
  /// somebody went back from. `notes` gets a sentence where `latest` is missing or damaged.
  std::vector<std::string> candidates(std::vector<std::string>& notes) const {
    auto all = steps();
    std::reverse(all.begin(), all.end());
    if (all.empty()) return all;
    auto latest = read_latest(notes);
    if (latest.empty()) return all;
    if (std::find(all.begin(), all.end(), latest) == all.end()) {
      notes.push_back(text(path("latest"), " names ", latest, ", which is not there; the newest checkpoint is tried"));
      return all;
    }
    std::vector<std::string> out;
    for (auto name = all.rbegin(); name != all.rend(); ++name)
      if (*step_of(*name) > *step_of(latest) && follows(*name) == identity(latest))
        out.insert(out.begin(), latest = *name);
    const auto newest_taken = out.empty() ? latest : out.front();
    for (auto& name : all)
      if (*step_of(name) <= *step_of(newest_taken) && std::find(out.begin(), out.end(), name) == out.end())
        out.push_back(name);
    return out;
  }

  /// Which checkpoint a folder holds: its name and the checksum of its manifest; nothing if that cannot be read.
  std::string identity(const std::string& name) const {
    try {
      return identity(name, read_text(*files_, path(name) + "/" + Manifest::file_name));
    } catch (const DataError&) {
      return {};
    }
  }
  static std::string identity(const std::string& name, std::string_view manifest) {
    return text(name, " ", checksum_text(Checksum::of(manifest)));
  }

  /// An empty temporary folder for the checkpoint of a step; removes what saves that died have left.
  std::string begin(std::int64_t step) {
    remove_temporary();
    auto folder = path(temporary(name_of(step)));
    files_->make_folder(folder);
    return folder;
  }
  /// The temporary folder becomes the checkpoint of its step; all its files must be synced. When this returns it
  /// survives a loss of power. A checkpoint of the same step that is there already is replaced.
  void commit(std::int64_t step) {
    const auto name = name_of(step);
    const auto from = path(temporary(name)), to = path(name);
    files_->sync_folder(from);
    if (files_->kind(to) == FileSystem::Kind::nothing) {
      files_->rename(from, to);
    } else if (!files_->exchange(from, to)) {
      files_->rename(to, path(std::string(replaced) + name));
      files_->rename(from, to);
    }
    files_->sync_folder(root_);
    point_latest(name);
  }
  /// Removes older checkpoints than the `keep` newest up to `newest` (0: keeps all), and temporary folders.
  void prune(const std::string& newest, std::int64_t keep) {
    auto all = steps();
    std::erase_if(all, [&](auto& name) { return *step_of(name) > *step_of(newest); });
    for (std::int64_t i = 0; keep > 0 && i + keep < static_cast<std::int64_t>(all.size()); ++i) {
      const auto& name = all[static_cast<std::size_t>(i)];
      files_->rename(path(name), path(temporary("pruned-" + name)));  // never seen half removed
    }
    remove_temporary();
  }
  void remove_temporary() {
    recover();
    for (auto& name : files_->list(root_))
      if (name.starts_with(temporary(""))) files_->remove(path(name));
  }

  /// Makes a small file appear under its name when it is complete and on the disk.
  static void replace_file(FileSystem& files, const std::string& folder, const std::string& name,
                           std::string_view content) {
    const auto from = folder + "/" + temporary(name);
    files.remove(from);
    write_file(files, from, content);
    files.rename(from, folder + "/" + name);
    files.sync_folder(folder);
  }
  static void write_file(FileSystem& files, const std::string& path, std::string_view content) {
    auto file = File::create(files, path);
    file.write(content);
    file.sync();
    file.close();
  }
  static std::string temporary(const std::string& name) { return ".tmp-" + name; }

 private:
  static constexpr std::string_view replaced = ".replaced-";

  void point_latest(const std::string& name) { replace_file(*files_, root_, "latest", name + "\n"); }

  std::string read_latest(std::vector<std::string>& notes) const {
    std::string name;
    try {
      name = read_text(*files_, path("latest"), 64);
      if (!name.empty() && name.back() == '\n') name.pop_back();
      if (step_of(name)) return name;
      notes.push_back(text(path("latest"), " does not name a checkpoint; the newest one is tried"));
    } catch (const DataError& error) {
      notes.push_back(text(error.what(), "; the newest checkpoint is tried"));
    }
    return {};
  }
  /// The checkpoint that `name` follows, as its manifest says; nothing if the manifest cannot be read.
  std::optional<std::string> follows(const std::string& name) const {
    try {
      const auto manifest = path(name) + "/" + Manifest::file_name;
      return Manifest::from_text(read_text(*files_, manifest), manifest).follows;
    } catch (const DataError&) {
      return {};
    }
  }

  FileSystem* files_;
  std::string root_;
  std::unique_ptr<File> lock_;
};

}  // namespace zeropp
