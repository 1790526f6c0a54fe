// SPDX-License-Identifier: Apache-2.0
// A device's memory, for files: on the host it is read and written in place, elsewhere through a buffer.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace zeropp::detail {

/// Devices whose memory the host may not touch.
template <class D>
inline constexpr bool is_remote = requires {
  requires D::cuda;
};

/// `values` where the host can read them; `buffer` holds a copy if it needs one.
template <class D, class T>
std::span<const T> on_host(D& device, std::span<const T> values, std::vector<T>& buffer) {
  if constexpr (!is_remote<D>) return values;
  buffer.resize(values.size());
  device.download(buffer.data(), values.data(), values.size_bytes());
  return buffer;
}

/// Calls f(span) to fill `values` on the host, and takes what it put there to the device.
template <class D, class T, class F>
void fill_from_host(D& device, std::span<T> values, std::vector<T>& buffer, F&& f) {
  if constexpr (!is_remote<D>) {
    f(values);
  } else {
    buffer.resize(values.size());
    f(std::span{buffer});
    device.upload(values.data(), buffer.data(), values.size_bytes());
  }
}

}  // namespace zeropp::detail
