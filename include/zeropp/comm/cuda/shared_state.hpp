// SPDX-License-Identifier: Apache-2.0
// One object for the ranks of a group that are threads of this process. A pointer to what one rank holds would dangle
// where that rank fails meanwhile; so the object is found by a number, in a list of the process.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include <zeropp/comm/comm.hpp>

namespace zeropp::detail {

/// T(arguments...), made by whichever rank comes first; it lives as long as one of them holds it. A collective.
template <class T, class... Arguments>
std::shared_ptr<T> shared_state(const Comm& host, const Arguments&... arguments) {
  static std::mutex mutex;
  static std::map<std::int64_t, std::weak_ptr<T>> all;
  static std::int64_t last = 0;
  std::int64_t number = 0;
  if (host.rank() == 0) {
    const std::lock_guard lock(mutex);
    number = ++last;
  }
  host.broadcast(std::span<std::int64_t>{&number, 1}, 0);
  const std::lock_guard lock(mutex);
  std::erase_if(all, [](const auto& one) { return one.second.expired(); });
  auto shared = all[number].lock();
  if (!shared) all[number] = shared = std::make_shared<T>(arguments...);
  return shared;
}

}  // namespace zeropp::detail
