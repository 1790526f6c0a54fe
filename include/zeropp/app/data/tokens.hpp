// SPDX-License-Identifier: Apache-2.0
// Where tokens come from: memory, a file, or several. Files are of llm.c's format (256 int32 of header: magic, version,
// count; then uint16 or uint32), raw numbers as nanoGPT's, or Megatron's (.bin with an index, .idx). They are read in
// pieces, never mapped, and every token is checked on opening and on every read.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/train/checkpoint/file_kind.hpp>

namespace zeropp {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual std::int64_t size() const = 0;  ///< tokens
  /// Tokens [begin, begin + out.size()), which must exist.
  virtual void read(std::int64_t begin, std::span<std::int32_t> out) const = 0;
};

/// A number that differs where tokens do, by which ranks compare their sources before they train. The function reads up
/// to 64 windows of tokens, a part of a long source.
inline std::uint64_t fingerprint_of(const TokenSource& source) {
  constexpr std::int64_t window = 1024, windows = 64;
  std::uint64_t hash = 0xcbf29ce484222325ull ^ static_cast<std::uint64_t>(source.size());
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < windows; ++i) {
    const auto begin = std::max<std::int64_t>(0, source.size() - window) / (windows - 1) * i;
    tokens.resize(static_cast<std::size_t>(std::min(window, source.size() - begin)));
    source.read(begin, tokens);
    for (auto token : tokens) hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x100000001b3ull;  // FNV-1a
  }
  return hash;
}

class MemoryTokens final : public TokenSource {
 public:
  explicit MemoryTokens(std::vector<std::int32_t> tokens) : tokens_(std::move(tokens)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(tokens_.size()); }
  void read(std::int64_t begin, std::span<std::int32_t> out) const override {
    std::copy_n(tokens_.begin() + begin, out.size(), out.begin());
  }

 private:
  std::vector<std::int32_t> tokens_;
};

/// Sources end to end.
class JoinedTokens final : public TokenSource {
 public:
  explicit JoinedTokens(std::vector<std::shared_ptr<const TokenSource>> parts) : parts_(std::move(parts)) {
    for (auto& part : parts_) ends_.push_back(size() + part->size());
  }
  std::int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }
  void read(std::int64_t begin, std::span<std::int32_t> out) const override {
    auto part = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
    for (; !out.empty(); ++part) {
      const auto count = std::min(static_cast<std::int64_t>(out.size()), ends_[part] - begin);
      parts_[part]->read(begin - (ends_[part] - parts_[part]->size()), out.first(static_cast<std::size_t>(count)));
      begin += count, out = out.subspan(static_cast<std::size_t>(count));
    }
  }

 private:
  std::vector<std::shared_ptr<const TokenSource>> parts_;
  std::vector<std::int64_t> ends_;
};

class FileTokens final : public TokenSource {
 public:
  enum class Format { llm_c, raw_uint16, raw_uint32, megatron };

  /// Reads and checks the whole file once, in pieces. Throws DataError with path and offset: missing, empty, truncated,
  /// a wrong magic or version, a count that is not that of the file, an odd number of bytes, a token >= vocabulary.
  FileTokens(const std::string& path, std::int64_t vocabulary, Format format = Format::llm_c,
             FileSystem& files = FileSystem::system())
      : file_(File::read(files, path, File::Links::follow)), opened_(stamp()), vocabulary_(vocabulary) {
    if (file_.size() == 0) throw DataError(text(path, " is empty: no tokens at byte 0"));
    switch (format) {
      case Format::llm_c: read_header(); break;
      case Format::raw_uint16: raw(2); break;
      case Format::raw_uint32: raw(4); break;
      case Format::megatron: read_index(files, path.substr(0, path.rfind('.')) + ".idx");
    }
    check();
  }

  std::int64_t size() const override { return count_; }

  void read(std::int64_t begin, std::span<std::int32_t> out) const override {
    if (stamp() != opened_)
      throw DataError(text(file_.path(), " was changed while it was read; start again with the new data"));
    std::vector<std::byte> raw(out.size() * width_);
    file_.read_at(data_ + begin * static_cast<std::int64_t>(width_), raw);
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::uint32_t token = 0;
      std::memcpy(&token, raw.data() + i * width_, width_);
      if (static_cast<std::int64_t>(token) >= vocabulary_)
        throw DataError(text(file_.path(), " holds the token ", token, " at byte ",
                             data_ + (begin + static_cast<std::int64_t>(i)) * static_cast<std::int64_t>(width_),
                             ", outside the vocabulary of ", vocabulary_, "; it was made with another tokenizer"));
      out[i] = static_cast<std::int32_t>(token);
    }
  }

 private:
  static constexpr std::int64_t header_bytes = 1024;

  /// Size and time of the last change.
  std::array<std::int64_t, 3> stamp() const {
    struct stat status {};
    if (::fstat(file_.descriptor(), &status) < 0) throw DataError(text("fstat of ", file_.path(), " failed"));
    return {status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
  }
  void raw(std::size_t width) {
    width_ = width;
    const auto& path = file_.path();
    if (const auto* kind = kind_of_file(file_))
      throw DataError(text(path, " is ", kind->name, ", not raw tokens",
                           kind->as_data.empty() ? "; leave out --data-format" : text("; ", kind->as_data)));
    if (const auto rest = file_.size() % static_cast<std::int64_t>(width))
      throw DataError(text(path, " holds ", file_.size(), " bytes: raw uint", 8 * width, " tokens need ",
                           width == 2 ? std::string("an even number") : text("a multiple of ", width), "; byte ",
                           file_.size() - rest, " belongs to no token"));
    count_ = file_.size() / static_cast<std::int64_t>(width);
    expect_width();
  }
  /// Wider numbers read as narrow ones are tokens and zeros in turn.
  void expect_width() {
    std::vector<std::uint16_t> first(static_cast<std::size_t>(std::min<std::int64_t>(file_.size() / 2, 4096)) &
                                     ~std::size_t{3});
    file_.read_at(0, std::as_writable_bytes(std::span{first}));
    std::size_t wide = 0, widest = 0, nonzero = 0;
    for (std::size_t i = 0; i < first.size(); ++i)
      wide += i % 2 && !first[i], widest += i % 4 && !first[i], nonzero += i % 4 == 0 && first[i];
    if (first.size() < 32 || nonzero == 0) return;
    if (widest == first.size() / 4 * 3)
      throw DataError(text(file_.path(), " holds numbers of 64 bits; write them with .astype(numpy.uint16).tofile"));
    if (width_ == 2 && wide == first.size() / 2)
      throw DataError(text(file_.path(),
                           " holds numbers of 32 bits, every second one of 16 bits is 0; give "
                           "--data-format raw32"));
  }
  /// Megatron's index: magic, version, dtype, counts; the sizes and places of the sequences, which lie one by one.
  void read_index(FileSystem& files, const std::string& path) {
    auto index = File::read(files, path, File::Links::follow);
    const auto refuse = [&](std::string_view what) {
      throw DataError(text(path, " is not read: ", what, "; make it again with Megatron's preprocess_data.py"));
    };
    std::array<std::byte, 34> head;
    if (index.size() < static_cast<std::int64_t>(head.size())) refuse("it is shorter than its header");
    index.read_at(0, head);
    const auto at = [&]<class T>(std::size_t byte, T value) {
      return std::memcpy(&value, head.data() + byte, sizeof value), value;
    };
    if (std::memcmp(head.data(), "MMIDIDX\0\0", 9) != 0) refuse("it is no index of Megatron");
    if (const auto version = at(9, std::uint64_t{}); version != 1)
      refuse(text("it is of version ", version, ", not 1"));
    const int type = at(17, std::uint8_t{});
    if (type != 8 && type != 4) refuse(text("its tokens are of type ", type, ", not uint16 (8) or int32 (4)"));
    width_ = type == 8 ? 2 : 4;
    const auto sequences = at(18, std::int64_t{});
    if (sequences < 0 || index.size() / 12 < sequences) refuse("it is shorter than its sequences");
    std::vector<std::int32_t> sizes(static_cast<std::size_t>(sequences));
    std::vector<std::int64_t> places(sizes.size());
    index.read_at(head.size(), std::as_writable_bytes(std::span{sizes}));
    index.read_at(static_cast<std::int64_t>(head.size() + 4 * sizes.size()), std::as_writable_bytes(std::span{places}));
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] < 0 || places[i] != count_ * static_cast<std::int64_t>(width_))
        refuse(text("sequence ", i, " does not follow the one before it"));
      count_ += sizes[i];
    }
    if (const auto bytes = count_ * static_cast<std::int64_t>(width_); bytes != file_.size())
      throw DataError(text(path, " tells of ", bytes, " bytes of tokens, but ", file_.path(), " holds ", file_.size(),
                           "; they are not of one data set"));
  }
  void read_header() {
    const auto& path = file_.path();
    if (file_.size() < header_bytes)
      throw DataError(
          text(path, " ends at byte ", file_.size(), ", in the middle of its header of ", header_bytes, " bytes"));
    std::array<std::int32_t, 256> header;
    file_.read_at(0, std::as_writable_bytes(std::span{header}));
    if (const auto* kind = kind_of_file(file_); kind && !kind->as_data.empty())
      throw DataError(text(path, " is ", kind->name, ", not tokens; ", kind->as_data));
    if (header[0] != 20240520 && header[0] != 20240801)
      throw DataError(text(path, " begins with the number ", header[0],
                           " at byte 0; token files begin with 20240520 (uint16) or ",
                           "20240801 (uint32). If it is nanoGPT's raw uint16, give --data-format raw"));
    width_ = header[0] == 20240520 ? 2 : 4;
    data_ = header_bytes;
    if (header[1] != (width_ == 2 ? 1 : 7))
      throw DataError(
          text(path, " is of version ", header[1], " at byte 4; versions 1 (uint16) and 7 (uint32) are read"));
    count_ = header[2];
    const auto expected = header_bytes + count_ * static_cast<std::int64_t>(width_);
    if (count_ < 0 || file_.size() != expected)
      throw DataError(text(path, " says at byte 8 that it holds ", count_, " tokens, which would end at byte ",
                           expected, ", but it ends at byte ", file_.size(), "; it was cut or damaged"));
    if (count_ == 0) throw DataError(text(path, " holds no tokens behind its header of ", header_bytes, " bytes"));
  }
  void check() const {
    std::vector<std::int32_t> piece(std::size_t{1} << 16);
    for (std::int64_t at = 0; at < count_; at += static_cast<std::int64_t>(piece.size())) {
      piece.resize(
          static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(piece.size()), count_ - at)));
      read(at, piece);
    }
  }

  mutable File file_;
  std::array<std::int64_t, 3> opened_;
  std::int64_t vocabulary_;
  std::size_t width_ = 2;
  std::int64_t data_ = 0, count_ = 0;
};

/// Writes llm.c's format: uint16 where the vocabulary allows it, else uint32. The file must not exist.
inline void write_tokens(const std::string& path, std::span<const std::int32_t> tokens, std::int64_t vocabulary,
                         FileSystem& files = FileSystem::system()) {
  if (tokens.size() > 0x7fffffff)
    throw DataError(
        text(path, ": a token file counts at most 2147483647 tokens, got ", tokens.size(), "; write several"));
  const bool narrow = vocabulary <= 65536;
  std::array<std::int32_t, 256> header{narrow ? 20240520 : 20240801, narrow ? 1 : 7,
                                       static_cast<std::int32_t>(tokens.size())};
  auto file = File::create(files, path);
  file.write(std::as_bytes(std::span{header}));
  std::vector<std::uint16_t> half;
  for (std::size_t at = 0; at < tokens.size(); at += 1 << 16) {
    const auto piece = tokens.subspan(at, std::min<std::size_t>(1 << 16, tokens.size() - at));
    for (auto token : piece)
      if (token < 0 || token >= vocabulary)
        throw DataError(text(path, ": token ", token, " is outside the vocabulary of ", vocabulary));
    if (narrow) {
      half.assign(piece.begin(), piece.end());
      file.write(std::as_bytes(std::span{half}));
    } else {
      file.write(std::as_bytes(piece));
    }
  }
  file.sync();
  file.close();
}

}  // namespace zeropp
