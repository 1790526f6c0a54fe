// SPDX-License-Identifier: Apache-2.0
// Files and folders where every system call is checked: an error says the call, the path, the place and the reason.
// All calls pass one virtual function, so tests can count them, fail the n-th, shorten it, or die there.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

struct SystemCall {
  std::string_view name;
  std::string_view path;
  std::size_t bytes = 0;  ///< of a read or write
};

class FileSystem {
 public:
  using Run = std::function<long(std::size_t bytes)>;
  enum class Kind { nothing, file, folder, other };  ///< a symbolic link is `other`: it is not followed

  virtual ~FileSystem() = default;
  /// The one of the operating system.
  static FileSystem& system() {
    static FileSystem instance;
    return instance;
  }

  /// The result of a system call, made again after a signal. -1 with errno where it failed.
  long raw(const SystemCall& call, const Run& run) {
    for (;;) {
      const long result = intercept(call, run);
      if (result >= 0 || errno != EINTR || call.name == "close") return result;
    }
  }
  /// The same; throws DataError where it failed.
  long checked(const SystemCall& call, const Run& run, std::int64_t offset = -1) {
    const long result = raw(call, run);
    if (result < 0) fail(call, errno, offset);
    return result;
  }
  [[noreturn]] static void fail(const SystemCall& call, int error, std::int64_t offset = -1) {
    throw DataError(text(call.name, call.bytes ? text(" of ", call.bytes, " bytes") : "",
                         offset >= 0 ? text(" at byte ", offset) : "", " of ", call.path,
                         " failed: ", std::generic_category().message(error), advice(error)));
  }

  Kind kind(const std::string& path) {
    struct stat status {};
    if (raw({"lstat", path}, [&](std::size_t) { return ::lstat(path.c_str(), &status); }) < 0) {
      if (errno == ENOENT || errno == ENOTDIR) return Kind::nothing;
      fail({"lstat", path}, errno);
    }
    return S_ISREG(status.st_mode) ? Kind::file : S_ISDIR(status.st_mode) ? Kind::folder : Kind::other;
  }
  void make_folder(const std::string& path) {
    checked({"mkdir", path}, [&](std::size_t) { return ::mkdir(path.c_str(), 0777); });
  }
  /// The folder and those above it, where they are missing. Links on the way are followed.
  void make_folders(const std::string& path) {
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      const auto part = path.substr(0, end);
      if (raw({"mkdir", part}, [&](std::size_t) { return ::mkdir(part.c_str(), 0777); }) < 0 && errno != EEXIST)
        fail({"mkdir", part}, errno);
      if (end == std::string::npos) return;
    }
  }
  /// Where a path leads when all links are followed. Throws DataError where that does not exist.
  std::string resolved(const std::string& path) {
    std::string out(4097, '\0');
    checked({"realpath", path}, [&](std::size_t) { return ::realpath(path.c_str(), out.data()) ? 0 : -1; });
    out.resize(out.find('\0'));
    return out;
  }
  /// Names in a folder, sorted, without . and ..
  std::vector<std::string> list(const std::string& path) {
    std::vector<std::string> names;
    checked({"list", path}, [&](std::size_t) { return read_names(path, names); });
    std::sort(names.begin(), names.end());
    return names;
  }
  void rename(const std::string& from, const std::string& to) {
    checked({"rename", from}, [&](std::size_t) { return std::rename(from.c_str(), to.c_str()); });
  }
  /// Both names change places at once. False where the file system cannot do that.
  bool exchange(const std::string& a, const std::string& b) {
    const SystemCall call{"renameat2", a};
    if (raw(call,
            [&](std::size_t) { return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE); }) == 0)
      return true;
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) fail(call, errno);
    return false;
  }
  /// A file, a link, or a folder with all that is in it. Links are removed, not followed.
  void remove(const std::string& path) {
    switch (kind(path)) {
      case Kind::nothing: return;
      case Kind::folder:
        for (auto& name : list(path)) remove(path + "/" + name);
        checked({"rmdir", path}, [&](std::size_t) { return ::rmdir(path.c_str()); });
        return;
      case Kind::file:
      case Kind::other: checked({"unlink", path}, [&](std::size_t) { return ::unlink(path.c_str()); });
    }
  }
  /// Makes the names in a folder survive a loss of power.
  void sync_folder(const std::string& path);

 protected:
  virtual long intercept(const SystemCall& call, const Run& run) { return run(call.bytes); }

 private:
  static long read_names(const std::string& path, std::vector<std::string>& names) {
    names.clear();
    DIR* folder = ::opendir(path.c_str());
    if (!folder) return -1;
    errno = 0;
    while (const dirent* entry = ::readdir(folder))
      if (const std::string_view name = entry->d_name; name != "." && name != "..") names.emplace_back(name);
    const int error = errno;
    ::closedir(folder);
    errno = error;
    return error ? -1 : 0;
  }
  static std::string_view advice(int error) {
    switch (error) {
      case ENOSPC:
      case EDQUOT: return "; free some space there or choose another folder";
      case EACCES:
      case EPERM:
      case EROFS: return "; choose a path that this user may read and write";
      case EMFILE:
      case ENFILE: return "; raise the limit on open files (ulimit -n)";
      case ELOOP: return "; a symbolic link is not followed here";
    }
    return "";
  }
};

/// Owner of an open file. The destructor closes it and says nothing; after writing call sync() and close().
class File {
 public:
  enum class Links { follow, refuse };

  /// A file that does not exist yet.
  static File create(FileSystem& files, const std::string& path) {
    return {files, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC};
  }
  /// A regular file; anything else (a folder, a pipe, with Links::refuse a symbolic link) is refused.
  static File read(FileSystem& files, const std::string& path, Links links = Links::refuse) {
    File file{files, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links == Links::refuse ? O_NOFOLLOW : 0)};
    struct stat status {};
    files.checked({"fstat", path}, [&](std::size_t) { return ::fstat(file.descriptor_, &status); });
    if (!S_ISREG(status.st_mode)) throw DataError(text(path, " is not a regular file; name a file that holds data"));
    file.size_ = status.st_size;
    return file;
  }
  File(FileSystem& files, std::string path, int flags) : files_(&files), path_(std::move(path)) {
    descriptor_ = static_cast<int>(
        files.checked({"open", path_}, [&](std::size_t) { return ::open(path_.c_str(), flags, 0666); }));
  }
  File(File&& other) noexcept
      : files_(other.files_),
        path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_) {}
  File& operator=(File&&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  /// Bytes: when it was opened to read, or written until now.
  std::int64_t size() const { return size_; }

  /// Appends.
  void write(std::span<const std::byte> data) {
    while (!data.empty()) {
      const auto done = static_cast<std::size_t>(files_->checked(
          {"write", path_, data.size()}, [&](std::size_t bytes) { return ::write(descriptor_, data.data(), bytes); },
          size_));
      size_ += static_cast<std::int64_t>(done);
      data = data.subspan(done);
    }
  }
  void write(std::string_view data) { write(std::as_bytes(std::span{data})); }

  /// Reads all of `out`. A file that ends before is refused: it was cut after it was opened.
  void read_at(std::int64_t offset, std::span<std::byte> out) {
    while (!out.empty()) {
      const auto done = static_cast<std::size_t>(files_->checked(
          {"pread", path_, out.size()},
          [&](std::size_t bytes) { return ::pread(descriptor_, out.data(), bytes, offset); }, offset));
      if (done == 0)
        throw DataError(
            text(path_, " ends at byte ", offset, ", ", out.size(), " more were expected: it is truncated"));
      offset += static_cast<std::int64_t>(done);
      out = out.subspan(done);
    }
  }

  /// Returns when the contents would survive a loss of power.
  void sync() {
    files_->checked({"fsync", path_}, [&](std::size_t) { return ::fsync(descriptor_); });
  }
  void close() {
    files_->checked({"close", path_}, [&](std::size_t) { return ::close(std::exchange(descriptor_, -1)); });
  }

 private:
  FileSystem* files_;
  std::string path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

inline void FileSystem::sync_folder(const std::string& path) {
  File folder{*this, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC};
  // Some network file systems cannot sync a folder and say EINVAL: their names are as durable as they get.
  if (raw({"fsync", path}, [&](std::size_t) { return ::fsync(folder.descriptor()); }) < 0 && errno != EINVAL)
    fail({"fsync", path}, errno);
  folder.close();
}

/// The text of a small file; longer ones than `limit` bytes are refused.
inline std::string read_text(FileSystem& files, const std::string& path, std::int64_t limit = 1 << 30,
                             File::Links links = File::Links::refuse) {
  auto file = File::read(files, path, links);
  if (file.size() > limit)
    throw DataError(text(path, " holds ", file.size(), " bytes, at most ", limit, " are expected"));
  std::string content(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span{content}));
  return content;
}

}  // namespace zeropp
