// SPDX-License-Identifier: Apache-2.0
// Which algorithm a search has found for which product: kept for the whole process, so that ranks that are threads take
// the same one, and in a small text file, so that the next run does.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include <zeropp/base/error.hpp>

namespace zeropp::kernels {

/// $XDG_CACHE_HOME/zeropp or ~/.cache/zeropp; empty where neither is known: nothing is kept on disk then.
inline std::string default_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/') return text(cache, "/zeropp");
  if (const char* home = std::getenv("HOME"); home && *home == '/') return text(home, "/.cache/zeropp");
  return {};
}

/// Maps keys (words without spaces) to 64 opaque bytes. Each line of the file is a key and 8 numbers of 16 hexadecimal
/// digits; lines that are not are skipped. Who comes first is right: `publish` returns what is in the book. A file that
/// cannot be read or written is as none. Any number of threads and processes may use it.
class ProductBook {
 public:
  using Entry = std::array<std::uint64_t, 8>;

  /// The book `name` of this process, with its file in `folder`, or none where that is empty.
  static std::shared_ptr<ProductBook> open(const std::string& folder, const std::string& name) {
    static std::mutex mutex;
    static std::map<std::string, std::weak_ptr<ProductBook>> all;
    const auto path = folder.empty() ? std::string() : text(folder, "/", file_name(name));
    std::scoped_lock lock(mutex);
    auto& place = all[text(path, "|", name)];
    auto book = place.lock();
    if (!book) {
      make_folders(folder);
      book = std::make_shared<ProductBook>(path);
      place = book;
    }
    return book;
  }

  explicit ProductBook(std::string path) : path_(std::move(path)) { read(); }

  std::optional<Entry> find(const std::string& key) {
    std::scoped_lock lock(mutex_);
    const auto at = entries_.find(key);
    return at == entries_.end() ? std::nullopt : std::optional(at->second);
  }

  /// Enters it where the key is new; returns what stands there then. `instead` replaces what stands there: an entry of
  /// a file that was found to be useless.
  Entry publish(const std::string& key, const Entry& entry, bool instead = false) {
    std::scoped_lock lock(mutex_);
    FileLock file(path_);
    if (file.held()) read();
    if (instead) entries_.erase(key);
    const auto [at, fresh] = entries_.emplace(key, entry);
    if (fresh && file.held()) write();
    return at->second;
  }

 private:
  /// An exclusive lock beside the file; not held where there is no file or another process does not let go in time.
  class FileLock {
   public:
    explicit FileLock(const std::string& path) {
      if (path.empty()) return;
      file_ = ::open(text(path, ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      for (int tries = 0; file_ >= 0 && !held_ && tries < 200; ++tries) {
        held_ = ::flock(file_, LOCK_EX | LOCK_NB) == 0;
        if (!held_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;
    ~FileLock() {
      if (file_ >= 0) ::close(file_);
    }
    bool held() const { return held_; }

   private:
    int file_ = -1;
    bool held_ = false;
  };

  static std::string file_name(const std::string& name) {
    std::string out;
    for (char c : name) out += std::isalnum(static_cast<unsigned char>(c)) || c == '.' ? c : '-';
    return out + ".txt";
  }
  static void make_folders(const std::string& folder) {
    for (std::size_t at = 1; at <= folder.size(); ++at)
      if (at == folder.size() || folder[at] == '/') static_cast<void>(::mkdir(folder.substr(0, at).c_str(), 0755));
  }

  void read() {
    if (path_.empty()) return;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) parse(line);
  }
  void parse(const std::string& line) {
    const auto space = line.find(' ');
    if (space == 0 || space == std::string::npos || line.size() != space + 8 * 17) return;
    Entry entry{};
    for (std::size_t i = 0; i < entry.size(); ++i) {
      const char* at = line.data() + space + 17 * i;
      const auto [end, error] = std::from_chars(at + 1, at + 17, entry[i], 16);
      if (*at != ' ' || error != std::errc{} || end != at + 17) return;
    }
    entries_.emplace(line.substr(0, space), entry);
  }
  void write() const {
    const auto fresh = text(path_, ".", static_cast<std::int64_t>(::getpid()));
    {
      std::ofstream file(fresh);
      for (const auto& [key, entry] : entries_) {
        file << key;
        for (auto number : entry) {
          char digits[17] = {};
          const auto end = std::to_chars(digits, digits + 16, number, 16).ptr;
          file << ' ' << std::string(static_cast<std::size_t>(16 - (end - digits)), '0') << digits;
        }
        file << '\n';
      }
      file.flush();
      if (!file) {
        file.close();
        static_cast<void>(std::remove(fresh.c_str()));
        return;
      }
    }
    if (std::rename(fresh.c_str(), path_.c_str()) != 0) static_cast<void>(std::remove(fresh.c_str()));
  }

  std::mutex mutex_;
  std::string path_;
  std::map<std::string, Entry> entries_;
};

}  // namespace zeropp::kernels
