// SPDX-License-Identifier: Apache-2.0
// The file of a disk tier. It has no name, so nothing of it is left when its process ends, however that ends. Its
// blocks are reserved when they are taken: a full disk is found then, and not in the middle of training. Reads and
// writes go past the page cache (O_DIRECT) where the file system allows it.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include <zeropp/base/error.hpp>
#include <zeropp/device/tiers/tier.hpp>

namespace zeropp::detail {

class DiskFile final : public TierMemory {
 public:
  explicit DiskFile(std::string folder) : folder_(std::move(folder)) {
    file_ = make(O_DIRECT);
    direct_ = file_ >= 0;
    if (!direct_ && errno == EINVAL) file_ = make(0);
    if (file_ < 0)
      throw ConfigError(text("the disk tier can make no file in '", folder_, "': ", std::strerror(errno),
                             "; name a folder of a local disk in which this user may write"));
    try {
      probe();
    } catch (...) {
      ::close(file_);
      throw;
    }
  }
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;
  ~DiskFile() override { ::close(file_); }

  bool direct() const { return direct_; }
  const std::string& folder() const { return folder_; }

  Place take(std::size_t bytes, Purpose purpose) override {
    const std::lock_guard lock(mutex_);
    auto gap = gaps_.begin();
    while (gap != gaps_.end() && gap->second < bytes) ++gap;
    const auto offset = gap != gaps_.end() ? gap->first : end_;
    reserve(offset, bytes, purpose);
    if (gap != gaps_.end()) {
      const auto rest = gap->second - bytes;
      gaps_.erase(gap);
      if (rest) gaps_.emplace(offset + bytes, rest);
    } else {
      end_ += bytes;
    }
    taken_ += bytes;
    return {.offset = offset};
  }
  /// Gives the disk its room back, too.
  void give(Place place, std::size_t bytes) noexcept override {
    const std::lock_guard lock(mutex_);
    release(place.offset, bytes);
    taken_ -= bytes;
    auto next = gaps_.emplace(place.offset, bytes).first;
    if (next != gaps_.begin())
      if (const auto before = std::prev(next); before->first + before->second == next->first) {
        before->second += next->second;
        gaps_.erase(next);
        next = before;
      }
    if (const auto after = std::next(next); after != gaps_.end() && next->first + next->second == after->first) {
      next->second += after->second;
      gaps_.erase(after);
    }
  }

  std::byte* read(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) override {
    const Pages pages(*this, place.offset + offset, bytes);
    transfer(Way::read, buffer, pages.begin, pages.size());
    return buffer + pages.before;
  }
  /// The pages at the ends keep what is not written.
  std::byte* prepare(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) override {
    const Pages pages(*this, place.offset + offset, bytes);
    if (pages.before) transfer(Way::read, buffer, pages.begin, page_size);
    if (pages.after && (!pages.before || pages.size() > page_size))
      transfer(Way::read, buffer + pages.size() - page_size, pages.end - page_size, page_size);
    return buffer + pages.before;
  }
  void write(Place place, std::size_t offset, std::size_t bytes, std::byte* buffer) override {
    const Pages pages(*this, place.offset + offset, bytes);
    transfer(Way::write, buffer, pages.begin, pages.size());
  }

 private:
  enum class Way : std::uint8_t { read, write };
  /// The part of the file that is read or written for bytes in it: direct access takes whole pages.
  struct Pages {
    Pages(const DiskFile& file, std::uint64_t first, std::size_t bytes)
        : begin(file.direct_ ? first / page_size * page_size : first),
          end(file.direct_ ? whole_pages(first + bytes) : first + bytes),
          before(static_cast<std::size_t>(first - begin)),
          after(static_cast<std::size_t>(end - first) - bytes) {}
    std::size_t size() const { return static_cast<std::size_t>(end - begin); }
    std::uint64_t begin, end;
    std::size_t before, after;
  };

  static off_t signed_of(std::uint64_t n) { return static_cast<off_t>(n); }

  int make(int flags) const {
    const int unnamed = ::open(folder_.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0600);
    if (unnamed >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return unnamed;
    auto name = folder_ + "/zeropp-XXXXXX";  // a file system without unnamed files
    const int named = ::mkostemp(name.data(), O_CLOEXEC | flags);
    if (named >= 0) ::unlink(name.c_str());
    return named;
  }
  /// Some file systems accept O_DIRECT when a file is opened and refuse its first request.
  void probe() {
    if (!direct_) return;
    alignas(page_size) std::byte buffer[page_size] = {};
    if (::pwrite(file_, buffer, page_size, 0) < 0 && errno == EINVAL) {
      direct_ = false;
      ::fcntl(file_, F_SETFL, 0);
    }
  }

  void reserve(std::uint64_t offset, std::size_t bytes, Purpose purpose) const {
    rlimit largest{};
    ::getrlimit(RLIMIT_FSIZE, &largest);  // beyond it the kernel sends a signal that ends the process
    if (largest.rlim_cur != RLIM_INFINITY && offset + bytes > largest.rlim_cur)
      throw MemoryError(text(no_room(bytes, purpose), "files of this process may hold ", largest.rlim_cur, " B, and ",
                             taken_, " B are in use; raise the limit (ulimit -f), or keep less on disk"));
    int error = bytes > free_bytes() ? ENOSPC : 0;
    if (!error) {
      int result = 0;
      do result = ::fallocate(file_, 0, signed_of(offset), signed_of(bytes));
      while (result < 0 && errno == EINTR);
      if (result < 0 && errno == EOPNOTSUPP) result = ::ftruncate(file_, signed_of(std::max(end_, offset + bytes)));
      if (result == 0) return;
      error = errno;
      release(offset, bytes);  // it may have taken a part, up to all that was free
    }
    if (error != ENOSPC && error != EDQUOT && error != EFBIG)
      throw DataError(text("the file of the disk tier in '", folder_, "' cannot grow by ", bytes,
                           " B: ", std::strerror(error), "; check the disk, or name a folder of another one"));
    throw MemoryError(text(no_room(bytes, purpose), free_bytes(), " B of the disk are free, and ", taken_,
                           " B are in use (", std::strerror(error),
                           "); free some, name a folder of another disk, or keep less there"));
  }
  void release(std::uint64_t offset, std::size_t bytes) const noexcept {
    static_cast<void>(
        ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, signed_of(offset), signed_of(bytes)));
  }
  std::string no_room(std::size_t bytes, Purpose purpose) const {
    return text("no room for ", bytes, " B of ", purpose_names[static_cast<std::size_t>(purpose)],
                " on the disk tier in '", folder_, "': ");
  }
  std::uint64_t free_bytes() const {
    struct statvfs disk {};
    return ::fstatvfs(file_, &disk) == 0 ? disk.f_bavail * disk.f_frsize : 0;
  }

  /// All of it, in as many calls as it takes. Direct access goes on at a page.
  void transfer(Way way, std::byte* buffer, std::uint64_t offset, std::size_t bytes) const {
    std::size_t done = 0;
    while (done < bytes) {
      const auto at = signed_of(offset + done);
      const auto moved = way == Way::read ? ::pread(file_, buffer + done, bytes - done, at)
                                          : ::pwrite(file_, buffer + done, bytes - done, at);
      if (moved < 0 && errno == EINTR) continue;
      const int error = moved < 0 ? errno : 0;
      auto now = moved > 0 ? done + static_cast<std::size_t>(moved) : done;
      if (direct_ && now < bytes) now = now / page_size * page_size;
      if (now == done) fail(way, offset + done, bytes - done, error);
      done = now;
    }
  }
  [[noreturn]] void fail(Way way, std::uint64_t offset, std::size_t bytes, int error) const {
    const auto what = text("the disk tier in '", folder_, "' could not ", way == Way::read ? "read " : "write ", bytes,
                           " B at byte ", offset, " of its file: ", error ? std::strerror(error) : "nothing was moved");
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
      throw MemoryError(text(what, "; ", free_bytes(), " B of the disk are free; free some, or keep less there"));
    throw DataError(text(what, "; its state is lost: check the disk, and go on from the last checkpoint"));
  }

  std::string folder_;
  int file_ = -1;
  bool direct_ = false;
  std::mutex mutex_;
  std::map<std::uint64_t, std::uint64_t> gaps_;  ///< free parts before the end: their sizes by offset
  std::uint64_t end_ = 0, taken_ = 0;
};

}  // namespace zeropp::detail
