// SPDX-License-Identifier: Apache-2.0
// Token files of tiktoken: a line holds the bytes of a token in base64 and its number, which is its rank too. The file
// says neither how texts are cut nor which tokens are special: its size tells which of the known ones it is.
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/app/data/tokenizer_json.hpp>
#include <zeropp/train/checkpoint/file_kind.hpp>

namespace zeropp {

namespace detail {

inline constexpr const char* cl100k_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr const char* o200k_pattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct KnownTiktoken {
  std::size_t tokens;  ///< lines of the file
  const char* pattern;
  std::int32_t end_of_text;
  const char* special = "<|endoftext|>";
};
inline constexpr std::array<KnownTiktoken, 5> known_tiktokens{{{50256, gpt2_pattern, 50256},  // gpt2, r50k_base
                                                               {50280, gpt2_pattern, 50256},  // p50k_base
                                                               {100256, cl100k_pattern, 100257},
                                                               {199998, o200k_pattern, 199999},
                                                               {128000, cl100k_pattern, 128001, "<|end_of_text|>"}}};

/// False where it is no base64.
inline bool decode_base64(std::string_view text, std::string& bytes) {
  bytes.clear();
  std::uint32_t bits = 0;
  int count = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (char c : text) {
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) return false;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if ((count += 6) >= 8) bytes += static_cast<char>(bits >> (count -= 8) & 0xff);
  }
  return !bytes.empty();
}

}  // namespace detail

/// Throws DataError with the line that is wrong.
inline Tokenizer tokenizer_from_tiktoken(std::string_view content, const std::string& path) {
  TokenizerParts parts;
  parts.bytes.fill(-1);
  std::unordered_map<std::string, std::int32_t> ranks;
  std::size_t line = 0;
  for (std::size_t at = 0; at < content.size();) {
    const auto end = std::min(content.find('\n', at), content.size());
    const auto words = content.substr(at, end - at);
    at = end + 1, ++line;
    if (words.empty()) continue;
    const auto space = words.find(' ');
    std::int32_t token = -1;
    std::string bytes;
    const auto number = words.substr(space == words.npos ? words.size() : space + 1);
    const auto read = std::from_chars(number.data(), number.data() + number.size(), token);
    if (read.ec != std::errc{} || token < 0 || token >= 1 << 24 ||
        !detail::decode_base64(words.substr(0, space), bytes) || !ranks.emplace(bytes, token).second)
      throw DataError(text(path, " line ", line, " is no token of its own: tiktoken's files hold base64 and a number"));
    if (token >= static_cast<std::int32_t>(parts.pieces.size()))
      parts.pieces.resize(static_cast<std::size_t>(token) + 1);
    if (bytes.size() == 1) parts.bytes[static_cast<unsigned char>(bytes[0])] = token;
    parts.pieces[static_cast<std::size_t>(token)] = std::move(bytes);
  }
  if (std::find(parts.bytes.begin(), parts.bytes.end(), -1) != parts.bytes.end())
    throw DataError(text(path, " has no token for some single bytes; it was cut, or is no file of tiktoken"));
  // Any two tokens whose bytes together are a token merge into it, at its rank.
  for (std::int32_t token = 0; token < static_cast<std::int32_t>(parts.pieces.size()); ++token) {
    const auto& piece = parts.pieces[static_cast<std::size_t>(token)];
    for (std::size_t cut = 1; cut < piece.size(); ++cut)
      if (const auto left = ranks.find(piece.substr(0, cut)); left != ranks.end())
        if (const auto right = ranks.find(piece.substr(cut)); right != ranks.end())
          parts.merges.push_back({{left->second, right->second}, token, token});
  }
  parts.words_first = true;
  for (auto& known : detail::known_tiktokens)
    if (known.tokens == ranks.size()) {
      parts.patterns = {known.pattern};
      parts.special = {known.end_of_text};
      const auto end = static_cast<std::size_t>(known.end_of_text);
      if (end >= parts.pieces.size()) parts.pieces.resize(end + 1);
      parts.pieces[end] = known.special;
    }
  if (parts.patterns.empty())
    parts.cannot_encode = text(path, " holds ", ranks.size(),
                               " tokens and does not say how texts are cut; give the "
                               "tokenizer.json of the same tokenizer");
  return Tokenizer(std::move(parts));
}

/// A tokenizer of any known kind, by its contents.
inline Tokenizer read_tokenizer(const std::string& content, const std::string& path) {
  if (content.starts_with("zeropp tokenizer")) return Tokenizer::parse(content, path);
  if (const auto first = content.find_first_not_of(" \t\r\n"); first != content.npos && content[first] == '{')
    return tokenizer_from_json(content, path);
  if (const auto* kind = kind_of_file(std::string_view(content).substr(0, 4096)))
    throw DataError(text(path, " is ", kind->name, ", not a tokenizer; give a tokenizer.json or a file of tiktoken"));
  return tokenizer_from_tiktoken(content, path);
}
inline Tokenizer load_tokenizer(const std::string& path, FileSystem& files = FileSystem::system()) {
  return read_tokenizer(read_text(files, path, 1 << 30, File::Links::follow), path);
}

}  // namespace zeropp
