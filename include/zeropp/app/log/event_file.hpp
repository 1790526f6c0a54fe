// SPDX-License-Identifier: Apache-2.0
// Scalars as TensorBoard reads them: a file of records, each with its length and masked CRC-32C checksums of length and
// content; a record is an Event message of protocol buffers (tensorflow/core/util/event.proto).
#pragma once

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// Castagnoli's CRC of iSCSI (RFC 3720).
inline std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = t[i] >> 1 ^ (t[i] & 1 ? 0x82F63B78u : 0);
    }
    return t;
  }();
  std::uint32_t crc = ~std::uint32_t{0};
  for (const char byte : bytes) crc = table[(crc ^ static_cast<unsigned char>(byte)) & 255] ^ crc >> 8;
  return ~crc;
}

/// The checksum of a checksum would be weak: records store it rotated and shifted.
inline std::uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u; }

namespace detail {

/// Little-endian bytes of a number.
template <class T>
std::string little_endian(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  if constexpr (std::endian::native == std::endian::big) bytes.assign(bytes.rbegin(), bytes.rend());
  return bytes;
}

/// A record: length, its checksum, content, its checksum.
inline std::string record_of(const std::string& content) {
  const auto length = little_endian(static_cast<std::uint64_t>(content.size()));
  return length + little_endian(masked_crc32c(length)) + content + little_endian(masked_crc32c(content));
}

inline std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value > 127; value >>= 7) bytes += static_cast<char>((value & 127) | 128);
  return bytes + static_cast<char>(value);
}

/// A field of a message. Wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
inline std::string field(int number, int wire, const std::string& bytes) {
  return varint(static_cast<std::uint64_t>(number << 3 | wire)) + (wire == 2 ? varint(bytes.size()) + bytes : bytes);
}

}  // namespace detail

/// One file of one process; TensorBoard joins those of a folder. A writer that fails warns once and goes on.
class EventFile {
 public:
  /// Makes `folder`. Where `first` > 0 the run goes on: readers drop what another process wrote from that step on.
  EventFile(const std::string& folder, std::int64_t first, std::function<void(const std::string&)> warn)
      : warn_(std::move(warn)) {
    std::error_code ignored;  // writing fails, and says so
    std::filesystem::create_directories(folder, ignored);
    char host[256] = "localhost";
    ::gethostname(host, sizeof host - 1);
    path_ =
        text(folder, "/events.out.tfevents.", static_cast<std::int64_t>(seconds()), ".", host, ".", ::getpid(), ".0");
    file_.open(path_, std::ios::binary);
    using detail::field;
    append(field(3, 2, "brain.Event:2"));
    if (first > 0)  // session_log {status: START}
      append(field(2, 0, detail::varint(static_cast<std::uint64_t>(first))) +
             field(7, 2, field(1, 0, detail::varint(1))));
  }

  void scalar(std::string_view tag, double value, std::int64_t step) {
    using detail::field;
    const auto number = field(1, 2, std::string(tag)) + field(2, 5, detail::little_endian(static_cast<float>(value)));
    append(field(2, 0, detail::varint(static_cast<std::uint64_t>(step))) + field(5, 2, field(1, 2, number)));
  }
  const std::string& path() const { return path_; }

 private:
  static double seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
  void append(const std::string& event) {
    if (failed_) return;
    file_ << detail::record_of(detail::field(1, 1, detail::little_endian(seconds())) + event) << std::flush;
    if (file_) return;
    failed_ = true;
    warn_(text("cannot write ", path_, "; training goes on without it"));
  }

  std::string path_;
  std::function<void(const std::string&)> warn_;
  std::ofstream file_;
  bool failed_ = false;
};

}  // namespace zeropp
