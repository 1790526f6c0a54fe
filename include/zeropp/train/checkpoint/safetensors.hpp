// SPDX-License-Identifier: Apache-2.0
// Reader of safetensors files (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length of a
// JSON header, the header {name: {dtype, shape, data_offsets}}, then the tensors in C order without holes. The whole
// header is checked before the first tensor is read; tensors are read in ranges.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/train/checkpoint/file_kind.hpp>
#include <zeropp/train/checkpoint/strict_json.hpp>

namespace zeropp {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

/// Element types a file may hold; `type` is empty for those that nothing here computes with.
struct SafetensorsType {
  std::string_view name;
  std::int64_t bytes;
  std::optional<DType> type = std::nullopt;
};
inline constexpr std::array<SafetensorsType, 15> safetensors_types{{{"F64", 8, DType::f64},
                                                                    {"F32", 4, DType::f32},
                                                                    {"BF16", 2, DType::bf16},
                                                                    {"F16", 2, DType::f16},
                                                                    {"I64", 8, DType::i64},
                                                                    {"I32", 4, DType::i32},
                                                                    {"I16", 2, DType::i16},
                                                                    {"U16", 2, DType::u16},
                                                                    {"U8", 1, DType::u8},
                                                                    {"U64", 8},
                                                                    {"U32", 4},
                                                                    {"I8", 1},
                                                                    {"BOOL", 1},
                                                                    {"F8_E4M3", 1},
                                                                    {"F8_E5M2", 1}}};

struct StoredTensor {
  std::string name;
  SafetensorsType type;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, end = 0;  ///< bytes in the file
  std::int64_t count() const { return (end - begin) / type.bytes; }
};

/// Whether every value of a stored type is a value of T: what a read converts to T.
template <class T>
bool holds_exactly(std::optional<DType> stored) {
  if (stored == dtype_of<T>) return true;
  const bool half = stored == DType::bf16 || stored == DType::f16;
  if (dtype_of<T> == DType::f32) return half;
  if (dtype_of<T> == DType::f64) return half || stored == DType::f32;
  return false;
}

class Safetensors {
 public:
  static constexpr std::int64_t longest_header = 100'000'000;

  /// Opens a file and checks all of its header. Throws DataError.
  explicit Safetensors(FileSystem& files, const std::string& path, File::Links links = File::Links::refuse)
      : files_(&files), path_(path), links_(links), file_(File::read(files, path, links)), size_(file_->size()) {
    std::array<unsigned char, 8> prefix{};
    if (const auto* kind = kind_of_file(*file_); kind && kind != &detail::safetensors_kind)
      throw DataError(text(path, " is ", kind->name, ", not safetensors; ", kind->as_weights));
    if (size_ < 8)
      throw DataError(text(path, " holds ", size_, " bytes: too short for a safetensors file, it is truncated"));
    file_->read_at(0, std::as_writable_bytes(std::span{prefix}));
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | prefix[i];
    if (length > static_cast<std::uint64_t>(longest_header))
      throw DataError(text(path, " is no safetensors file, or damaged: its header would have ", length,
                           " bytes; safetensors allow ", longest_header));
    if (length > static_cast<std::uint64_t>(size_) - 8)
      throw DataError(text(path, ": the header needs ", length, " bytes, the file holds ", size_ - 8,
                           " after its length: it is truncated"));
    std::string header(length, '\0');
    file_->read_at(8, std::as_writable_bytes(std::span{header}));
    if (header.empty() || header[0] != '{') throw DataError(text(path, ": the header does not begin with {"));
    parse(parse_strict_json(header, path + " (header)"), 8 + static_cast<std::int64_t>(length));
    check_layout(8 + static_cast<std::int64_t>(length));
  }

  const std::string& path() const { return path_; }
  /// Until the next read: a reader of many files keeps few of them open.
  void close() { file_.reset(); }
  /// In the order of the file.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Null if there is none of that name.
  const StoredTensor* find(std::string_view name) const {
    const auto at = by_name_.find(name);
    return at == by_name_.end() ? nullptr : &tensors_[at->second];
  }
  const StoredTensor& at(std::string_view name) const {
    if (auto* tensor = find(name)) return *tensor;
    throw DataError(text(path(), " holds no tensor ", name));
  }

  /// Elements [first, first + out.size()) of a tensor, converted where that is exact (see holds_exactly).
  template <class T>
  void read(const StoredTensor& tensor, std::int64_t first, std::span<T> out) {
    const auto count = static_cast<std::int64_t>(out.size());
    if (first < 0 || first > tensor.count() || count > tensor.count() - first)
      throw DataError(text(path(), ": elements ", first, " to ", first + count, " of tensor ", tensor.name,
                           ", which has ", tensor.count()));
    if (!file_) reopen();
    const auto offset = tensor.begin + first * tensor.type.bytes;
    if (tensor.type.type == dtype_of<T>) return file_->read_at(offset, std::as_writable_bytes(out));
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
      if (tensor.type.type == DType::bf16) return convert<bf16>(offset, out);
      if (tensor.type.type == DType::f16) return convert<f16>(offset, out);
      if constexpr (std::is_same_v<T, double>)
        if (tensor.type.type == DType::f32) return convert<float>(offset, out);
    }
    throw DataError(text(path(), ": tensor ", tensor.name, " is ", tensor.type.name, ", which ", name_of(dtype_of<T>),
                         " does not hold exactly; convert the file"));
  }

 private:
  void reopen() {
    file_.emplace(File::read(*files_, path_, links_));
    if (file_->size() != size_)
      throw DataError(text(path_, " holds ", file_->size(), " bytes, and held ", size_, " when it was checked"));
  }
  template <class From, class T>
  void convert(std::int64_t offset, std::span<T> out) {
    std::vector<From> buffer(std::min<std::size_t>(out.size(), 1 << 16));
    while (!out.empty()) {
      const auto n = std::min(buffer.size(), out.size());
      file_->read_at(offset, std::as_writable_bytes(std::span{buffer}.first(n)));
      for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<float>(buffer[i]));
      offset += static_cast<std::int64_t>(n * sizeof(From));
      out = out.subspan(n);
    }
  }

  void parse(const nlohmann::json& header, std::int64_t data) {
    for (auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        if (!entry.is_object()) throw DataError(text(path(), ": __metadata__ must be an object"));
        for (auto& [key, value] : entry.items()) {
          if (!value.is_string()) throw DataError(text(path(), ": __metadata__ \"", key, "\" must be a string"));
          metadata_[key] = value;
        }
        continue;
      }
      tensors_.push_back(parse_tensor(name, entry, data));
    }
  }
  StoredTensor parse_tensor(const std::string& name, const nlohmann::json& entry, std::int64_t data) const {
    const auto where = text(path(), ": tensor ", name);
    const auto& type_name = json_string(entry, "dtype", where);
    const auto type = std::find_if(safetensors_types.begin(), safetensors_types.end(),
                                   [&](const SafetensorsType& t) { return t.name == type_name; });
    if (type == safetensors_types.end()) throw DataError(text(where, " has the unknown dtype ", type_name));
    StoredTensor tensor{name, *type, counts(json_array(entry, "shape", where), where)};
    const auto offsets = counts(json_array(entry, "data_offsets", where), where);
    if (entry.size() != 3) throw DataError(text(where, " has members beside dtype, shape and data_offsets"));
    std::int64_t bytes = type->bytes;
    // An extent of 0 makes the product 0, but the others must be sane still: all but zeros are multiplied first.
    for (auto extent : tensor.shape)
      if (extent && __builtin_mul_overflow(bytes, extent, &bytes))
        throw DataError(text(where, " of shape ", shape_text(tensor.shape), " does not fit in 63 bits"));
    if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) bytes = 0;
    if (offsets.size() != 2 || offsets[1] < offsets[0] || offsets[1] - offsets[0] != bytes)
      throw DataError(text(where, " of ", type->name, " ", shape_text(tensor.shape), " needs ", bytes,
                           " bytes, its data_offsets are ", shape_text(offsets)));
    if (offsets[1] > size_ - data)
      throw DataError(text(where, " ends at byte ", offsets[1], " of the data, the file holds ", size_ - data,
                           ": it is truncated"));
    tensor.begin = data + offsets[0];
    tensor.end = data + offsets[1];
    return tensor;
  }
  static std::vector<std::int64_t> counts(const nlohmann::json& array, const std::string& where) {
    std::vector<std::int64_t> out;
    for (auto& value : array) {
      if (!value.is_number_unsigned() || value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
        throw DataError(text(where, ": shapes and offsets are integers from 0 to 2^63 - 1, got ", value.dump()));
      out.push_back(value.get<std::int64_t>());
    }
    return out;
  }

  /// Tensors follow each other without overlap or hole up to the end of the file.
  void check_layout(std::int64_t data) {
    std::sort(tensors_.begin(), tensors_.end(), [](const StoredTensor& a, const StoredTensor& b) {
      return std::pair{a.begin, a.end} < std::pair{b.begin, b.end};
    });
    auto at = data;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const auto& tensor = tensors_[i];
      if (tensor.begin != at)
        throw DataError(text(path(), ": tensor ", tensor.name, " begins at byte ", tensor.begin - data,
                             " of the data, ", tensor.begin < at ? "inside the one before it" : "after a hole", " (",
                             at - data, " expected)"));
      at = tensor.end;
      by_name_.emplace(tensor.name, i);
    }
    if (at != size_)
      throw DataError(text(path(), ": ", size_ - at, " bytes follow the last tensor; they belong to nothing"));
  }

  FileSystem* files_;
  std::string path_;
  File::Links links_;
  std::optional<File> file_;
  std::int64_t size_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace zeropp
