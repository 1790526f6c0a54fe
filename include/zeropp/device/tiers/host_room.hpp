// SPDX-License-Identifier: Apache-2.0
// The memory that the host can still give. Linux hands out addresses for more than there is, and ends a process that
// uses them; so tiers ask first, and use what they take at once.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace zeropp {

namespace detail {

/// A small file of the kernel; empty where there is none.
inline std::string kernel_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return {};
  std::string all(16384, '\0');
  const auto count = ::read(file, all.data(), all.size());
  ::close(file);
  all.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return all;
}
/// The number after `name` at the beginning of a line; `otherwise` where there is none.
inline std::uint64_t number_after(std::string_view text, std::string_view name, std::uint64_t otherwise) {
  for (std::size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) {
    if (text.substr(at, name.size()) == name) {
      auto rest = text.substr(at + name.size());
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
      std::uint64_t number = 0;
      const auto end = std::from_chars(rest.data(), rest.data() + rest.size(), number);
      return end.ec == std::errc{} ? number : otherwise;
    }
    if (text.find('\n', at) == text.npos) break;
  }
  return otherwise;
}

/// The bytes that a control group has left, by its files: its limit, its use, and how much of that is page cache.
inline std::uint64_t group_room(std::string_view limit, std::string_view use, std::string_view statistics) {
  constexpr auto none = std::numeric_limits<std::uint64_t>::max();
  const auto most = number_after(limit, "", none), now = number_after(use, "", 0);
  if (most == none) return none;
  const auto cache = number_after(statistics, "inactive_file ", 0) + number_after(statistics, "active_file ", 0);
  const auto kept = now > cache ? now - cache : 0;
  return most > kept ? most - kept : 0;
}

}  // namespace detail

/// Bytes that this process can still use: what the machine has available, within the limit of its control group.
inline std::uint64_t host_room() {
  constexpr auto none = std::numeric_limits<std::uint64_t>::max();
  const auto available = detail::number_after(detail::kernel_file("/proc/meminfo"), "MemAvailable:", none / 1024);
  const auto group = detail::kernel_file("/proc/self/cgroup");
  const auto path = group.substr(0, 3) == "0::" ? group.substr(3, group.find('\n') - 3) : std::string("/");
  const auto folder = "/sys/fs/cgroup" + path + "/memory.";
  return std::min(available * 1024,
                  detail::group_room(detail::kernel_file(folder + "max"), detail::kernel_file(folder + "current"),
                                     detail::kernel_file(folder + "stat")));
}

}  // namespace zeropp
