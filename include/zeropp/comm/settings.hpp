// SPDX-License-Identifier: Apache-2.0
// Settings that must be the same on all ranks, compared before anything depends on them: another value on one rank
// would train something else in silence, or end in a collective that never returns.
//
//   expect_same_settings(world.comm, {{"learning rate", text(lr)}, {"steps", text(steps)}});
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/comm/comm.hpp>

namespace zeropp {

struct Setting {
  std::string name;
  std::string value;
  bool operator==(const Setting&) const = default;
};
using SettingList = std::vector<Setting>;

namespace detail {

/// The settings of rank `root`, on all ranks. A collective.
inline SettingList settings_of(const Comm& comm, const SettingList& mine, int root) {
  std::string packed;
  for (auto& [name, value] : mine) packed += name + '\0' + value + '\0';
  auto length = static_cast<std::int64_t>(packed.size());
  comm.host().broadcast(std::span<std::int64_t>{&length, 1}, root);
  packed.resize(static_cast<std::size_t>(length));
  comm.host().broadcast(std::span<std::uint8_t>{reinterpret_cast<std::uint8_t*>(packed.data()), packed.size()}, root);
  SettingList all;
  for (std::size_t at = 0; at < packed.size();) {
    const auto name = packed.find('\0', at), value = packed.find('\0', name + 1);
    all.push_back({packed.substr(at, name - at), packed.substr(name + 1, value - name - 1)});
    at = value + 1;
  }
  return all;
}

/// The first difference in words: "weight decay is 0.2, there 0.1".
inline std::string difference(const SettingList& a, const SettingList& b) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (a[i].name != b[i].name) return text("has ", a[i].name, " where that one has ", b[i].name);
    if (a[i].value != b[i].value) return text("has ", a[i].name, " = ", a[i].value, ", that one ", b[i].value);
  }
  return a.size() > b.size() ? text("also has ", a[b.size()].name) : text("lacks ", b[a.size()].name);
}

}  // namespace detail

/// Throws CommError, on all ranks of `comm`, unless all of them have the same settings; the sentence names the first
/// rank that differs, the setting and both values. `axis` says how the ranks are called: "", "tensor ". A collective.
inline void expect_same_settings(const Comm& comm, const SettingList& mine, std::string_view axis = "",
                                 std::string_view what = "has other settings") {
  if (comm.size() == 1) return;
  std::string all;
  for (auto& [name, value] : mine) all += name + '\0' + value + '\0';
  const auto hash = static_cast<std::int64_t>(hash_of(all));
  std::vector<std::int64_t> hashes(static_cast<std::size_t>(comm.size()), hash);  // dry ranks gather nothing
  comm.host().all_gather(std::span<const std::int64_t>{&hash, 1}, std::span{hashes});
  for (std::size_t r = 1; r < hashes.size(); ++r) {
    if (hashes[r] == hashes[0]) continue;
    const auto theirs = detail::settings_of(comm, mine, static_cast<int>(r)),
               first = detail::settings_of(comm, mine, 0);
    throw CommError(text(axis, "rank ", r, " ", what, " than ", axis, "rank 0: it ", detail::difference(theirs, first),
                         "; start all ranks with the same program and settings"));
  }
}

}  // namespace zeropp
