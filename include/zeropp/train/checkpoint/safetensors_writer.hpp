// SPDX-License-Identifier: Apache-2.0
// Writer of safetensors files: names and shapes first, then the data in that order, in pieces of any size. It counts
// checksums of the file and of each tensor on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/train/checkpoint/checksum.hpp>
#include <zeropp/train/checkpoint/safetensors.hpp>

namespace zeropp {

struct TensorSpec {
  std::string name;
  DType type;
  std::vector<std::int64_t> shape;
};

/// The entry of a manifest for a written file.
struct FileRecord {
  struct Part {
    std::string name;
    std::int64_t begin = 0, end = 0;  ///< bytes in the file
    std::uint64_t checksum = 0;
  };
  std::string name;
  std::int64_t bytes = 0;
  std::uint64_t checksum = 0;
  std::vector<Part> tensors = {};
};

class SafetensorsWriter {
 public:
  /// Creates the file `name` in `folder` and writes its header. Throws ConfigError for names that appear twice or are
  /// not UTF-8 and sizes that overflow, DataError for the file.
  SafetensorsWriter(FileSystem& files, const std::string& folder, const std::string& name,
                    const std::vector<TensorSpec>& tensors, const std::map<std::string, std::string>& metadata = {})
      : header_(header_of(tensors, metadata)), file_(File::create(files, folder + "/" + name)) {
    record_.name = name;
    std::int64_t at = 8 + static_cast<std::int64_t>(header_.size());
    for (auto& tensor : tensors) {
      const auto end = at + bytes_of(tensor);
      record_.tensors.push_back({tensor.name, at, end});
      at = end;
    }
    std::string prefix(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(header_.size() >> (8 * i) & 0xff);
    put(std::as_bytes(std::span{prefix}));
    put(std::as_bytes(std::span{header_}));
    header_.clear();
  }

  /// The next bytes of the data; a piece may end in the middle of a tensor but not reach into the next one.
  template <class T>
  void append(std::span<const T> data) {
    auto bytes = std::as_bytes(data);
    while (next_ < record_.tensors.size() && position() == record_.tensors[next_].end) finish_tensor();
    if (bytes.empty()) return;
    if (next_ == record_.tensors.size() ||
        static_cast<std::int64_t>(bytes.size()) > record_.tensors[next_].end - position())
      throw Error(text("more bytes for ", file_.path(), " than its header announced"));
    tensor_.add(bytes);
    put(bytes);
  }

  /// Writes what is buffered, syncs and closes the file.
  FileRecord finish() {
    while (next_ < record_.tensors.size() && position() == record_.tensors[next_].end) finish_tensor();
    if (next_ != record_.tensors.size())
      throw Error(text(file_.path(), " ends before tensor ", record_.tensors[next_].name, " is complete"));
    flush();
    file_.sync();
    file_.close();
    record_.bytes = file_.size();
    record_.checksum = whole_.value();
    return std::move(record_);
  }

 private:
  static constexpr std::size_t buffer_bytes = 1 << 20;

  static std::int64_t bytes_of(const TensorSpec& tensor) {
    return checked_product(element_count(tensor.shape), static_cast<std::int64_t>(size_of(tensor.type)));
  }
  static std::string_view type_name(DType type) {
    for (auto& known : safetensors_types)
      if (known.type == type) return known.name;
    throw Error(text("no safetensors name for ", name_of(type)));
  }
  static std::string header_of(const std::vector<TensorSpec>& tensors,
                               const std::map<std::string, std::string>& metadata) {
    auto header = nlohmann::json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::int64_t at = 0;
    for (auto& tensor : tensors) {
      const auto bytes = bytes_of(tensor);
      if (header.contains(tensor.name))
        throw ConfigError(text("two tensors called ", tensor.name, " for one file; give each a name of its own"));
      std::int64_t end = 0;
      if (__builtin_add_overflow(at, bytes, &end)) throw ConfigError("a file of more than 2^63 - 1 bytes");
      header[tensor.name] = {{"dtype", type_name(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {at, end}}};
      at = end;
    }
    std::string out;
    try {
      out = header.dump();
    } catch (const nlohmann::json::exception& error) {
      throw ConfigError(text("names of tensors must be UTF-8: ", error.what()));
    }
    out.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(out.size()), 8)), ' ');
    if (static_cast<std::int64_t>(out.size()) > Safetensors::longest_header)
      throw ConfigError(text("a header of ", out.size(), " bytes; safetensors allow ", Safetensors::longest_header));
    return out;
  }

  std::int64_t position() const { return file_.size() + static_cast<std::int64_t>(buffer_.size()); }
  void finish_tensor() {
    record_.tensors[next_++].checksum = tensor_.value();
    tensor_ = {};
  }
  void put(std::span<const std::byte> data) {
    whole_.add(data);
    if (buffer_.size() + data.size() > buffer_bytes) flush();
    if (data.size() > buffer_bytes)
      file_.write(data);
    else
      buffer_.insert(buffer_.end(), data.begin(), data.end());
  }
  void flush() {
    file_.write(std::span<const std::byte>{buffer_});
    buffer_.clear();
  }

  std::string header_;
  File file_;
  FileRecord record_;
  Checksum whole_, tensor_;
  std::vector<std::byte> buffer_;
  std::size_t next_ = 0;
};

}  // namespace zeropp
