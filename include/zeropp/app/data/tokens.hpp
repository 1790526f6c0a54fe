// SPDX-License-Identifier: Apache-2.0
// Where tokens come from: memory, or a file of llm.c's format (256 int32 of header: magic, version, count; then uint16
// or uint32) or of nanoGPT's (raw uint16). Files are read in pieces, never mapped, and every token is checked on
// opening and on every read.
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

#include <zeropp/train/checkpoint/file.hpp>

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

class FileTokens final : public TokenSource {
 public:
  enum class Format { llm_c, raw_uint16 };

  /// Reads and checks the whole file once, in pieces. Throws DataError with path and offset: missing, empty, truncated,
  /// a wrong magic or version, a count that is not that of the file, an odd number of bytes, a token >= vocabulary.
  FileTokens(const std::string& path, std::int64_t vocabulary, Format format = Format::llm_c,
             FileSystem& files = FileSystem::system())
      : file_(File::read(files, path, File::Links::follow)), opened_(stamp()), vocabulary_(vocabulary) {
    if (file_.size() == 0) throw DataError(text(path, " is empty: no tokens at byte 0"));
    format == Format::llm_c ? read_header() : raw();
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
  void raw() {
    if (file_.size() % 2)
      throw DataError(text(file_.path(), " holds ", file_.size(),
                           " bytes: raw uint16 tokens need an even number; byte ", file_.size() - 1,
                           " belongs to no token"));
    count_ = file_.size() / 2;
  }
  void read_header() {
    const auto& path = file_.path();
    if (file_.size() < header_bytes)
      throw DataError(
          text(path, " ends at byte ", file_.size(), ", in the middle of its header of ", header_bytes, " bytes"));
    std::array<std::int32_t, 256> header;
    file_.read_at(0, std::as_writable_bytes(std::span{header}));
    if (header[0] != 20240520 && header[0] != 20240801)
      throw DataError(text(path, " begins with the number ", header[0],
                           " at byte 0; token files begin with 20240520 (uint16) or ",
                           "20240801 (uint32). If it is nanoGPT's raw uint16, say so"));
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
