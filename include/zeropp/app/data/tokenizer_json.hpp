// SPDX-License-Identifier: Apache-2.0
// tokenizer.json of the Hugging Face tokenizers library: byte-level BPE (GPT-2, Llama 3, Qwen) is read, and any
// tokenizer written so that the library cuts and merges alike.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/app/data/tokenizer.hpp>
#include <zeropp/train/checkpoint/strict_json.hpp>

namespace zeropp {

namespace detail {

/// GPT-2's pattern (Radford et al. 2019), which the pre-tokenizer ByteLevel cuts by.
inline constexpr const char* gpt2_pattern =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
/// The words of for_each_word. It counts bytes where the expression counts characters: so runs of more than 64 bytes of
/// letters outside ASCII are cut elsewhere by the other library.
inline constexpr const char* learned_pattern =
    R"( [A-Za-z'\x{80}-\x{10FFFF}]{1,63}|[A-Za-z'\x{80}-\x{10FFFF}]{1,64}|[0-9]{1,64}|)"
    R"([ \t\n\x0B\f\r]{1,64}(?= [A-Za-z'\x{80}-\x{10FFFF}])|[ \t\n\x0B\f\r]{1,64}|)"
    R"([^A-Za-z'\x{80}-\x{10FFFF}0-9 \t\n\x0B\f\r]{1,64})";

/// Bytes as characters that can be seen, in UTF-8: GPT-2's alphabet, and back.
struct ByteAlphabet {
  std::array<std::string, 256> shown;
  std::unordered_map<std::string, unsigned char> bytes;

  ByteAlphabet() {
    for (int b = 0, next = 256; b < 256; ++b) {
      const bool seen = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const int c = seen ? b : next++;
      auto& text = shown[static_cast<std::size_t>(b)];
      if (c < 128)
        text = static_cast<char>(c);
      else
        text = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
      bytes[text] = static_cast<unsigned char>(b);
    }
  }
  std::string show(std::string_view piece) const {
    std::string out;
    for (char c : piece) out += shown[static_cast<unsigned char>(c)];
    return out;
  }
  /// False where a character is none of the alphabet.
  bool read(std::string_view text, std::string& piece) const {
    piece.clear();
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = static_cast<unsigned char>(text[at]) < 128 ? 1 : 2;
      const auto found = bytes.find(std::string(text.substr(at, size)));
      if (found == bytes.end()) return false;
      piece += static_cast<char>(found->second);
      at += size;
    }
    return true;
  }
};

/// Reads how texts are cut into words; sets cannot_encode where that is another way than by patterns.
inline void read_cut(const nlohmann::json& json, const std::string& path, TokenizerParts& parts) {
  const auto type = json.is_object() ? json.value("type", "") : std::string();
  const auto refuse = [&](std::string_view what) {
    parts.cannot_encode = text(path, " cuts texts by ", what, ", which is not read; make tokens with it in Python");
  };
  if (type == "Sequence") {
    for (auto& one : json_array(json, "pretokenizers", path)) read_cut(one, path, parts);
  } else if (type == "ByteLevel") {
    if (json.value("add_prefix_space", true)) refuse("a space before the first word");
    if (json.value("use_regex", true)) parts.patterns.push_back(gpt2_pattern);
  } else if (type == "Split" && json.value("behavior", "") == "Isolated" && !json.value("invert", false) &&
             json_member(json, "pattern", path).contains("Regex")) {
    parts.patterns.push_back(json_string(json["pattern"], "Regex", path));
  } else {
    refuse(text("a pre-tokenizer \"", type, "\""));
  }
}

}  // namespace detail

/// Throws DataError for anything but byte-level BPE.
inline Tokenizer tokenizer_from_json(const std::string& content, const std::string& path) {
  const auto json = parse_strict_json(content, path);
  const auto& model = json_member(json, "model", path);
  const auto expect = [&](bool well, const std::string& what) {
    if (!well) throw DataError(text(path, " is not read: ", what, "; tokenizers of byte-level BPE are"));
  };
  const auto kind = model.value("type", std::string("BPE"));
  expect(kind == "BPE", text("its model is ", kind));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    expect(!model.contains(key) || model[key].is_null() || model[key] == "", text("its pieces carry a ", key));
  const auto& vocabulary = json_member(model, "vocab", path);
  expect(vocabulary.is_object() && !model.value("byte_fallback", false), "its tokens are not bytes");

  const detail::ByteAlphabet alphabet;
  constexpr std::int64_t most = 1 << 24;
  TokenizerParts parts;
  parts.bytes.fill(-1);
  std::unordered_map<std::string, std::int32_t> numbers;  // by the text of the file
  const auto place = [&](std::int64_t token) -> std::string& {
    expect(token >= 0 && token < most, text("it numbers a token ", token));
    if (token >= static_cast<std::int64_t>(parts.pieces.size()))
      parts.pieces.resize(static_cast<std::size_t>(token) + 1);
    return parts.pieces[static_cast<std::size_t>(token)];
  };
  std::vector<bool> added;
  if (json.contains("added_tokens"))
    for (auto& one : json_array(json, "added_tokens", path)) {
      const auto token = json_count(one, "id", path);
      place(token) = json_string(one, "content", path);
      expect(!parts.pieces[static_cast<std::size_t>(token)].empty(), "it adds an empty token");
      parts.special.push_back(static_cast<std::int32_t>(token));
      added.resize(parts.pieces.size());
      added[static_cast<std::size_t>(token)] = true;
    }
  for (auto& [shown, number] : vocabulary.items()) {
    expect(number.is_number_unsigned(), text("the number of the token ", nlohmann::json(shown).dump()));
    const auto token = number.get<std::int64_t>();
    numbers[shown] = static_cast<std::int32_t>(token);
    auto& piece = place(token);
    if (token < static_cast<std::int64_t>(added.size()) && added[static_cast<std::size_t>(token)]) continue;
    expect(piece.empty(), text("two tokens have the number ", token));
    expect(alphabet.read(shown, piece), text("its token ", nlohmann::json(shown).dump(), " is not of bytes"));
    if (piece.size() == 1) parts.bytes[static_cast<unsigned char>(piece[0])] = static_cast<std::int32_t>(token);
  }
  expect(std::find(parts.bytes.begin(), parts.bytes.end(), -1) == parts.bytes.end(), "it has no token for some bytes");
  for (auto& merge : json_array(model, "merges", path)) {
    std::string left, right;
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0], right = merge[1];
    } else if (merge.is_string()) {
      const auto line = merge.get<std::string>();
      const auto space = line.find(' ');
      expect(space != line.npos, "a merge is not of two tokens");
      left = line.substr(0, space), right = line.substr(space + 1);
    }
    const auto a = numbers.find(left), b = numbers.find(right), into = numbers.find(left + right);
    expect(a != numbers.end() && b != numbers.end() && into != numbers.end(),
           text("a merge of ", nlohmann::json(left).dump(), " and ", nlohmann::json(right).dump(),
                " names no tokens of it"));
    parts.merges.push_back({{a->second, b->second}, static_cast<std::int32_t>(parts.merges.size()), into->second});
  }
  if (json.contains("normalizer") && !json["normalizer"].is_null())
    parts.cannot_encode = text(path, " normalises texts, which is not done here; make tokens with it in Python");
  detail::read_cut(json.value("pre_tokenizer", nlohmann::json()), path, parts);
  parts.words_first = model.value("ignore_merges", false);
  parts.learned = parts.patterns == std::vector<std::string>{detail::learned_pattern};
  if (parts.learned) parts.patterns.clear();
  return Tokenizer(std::move(parts));
}

/// Throws DataError where two tokens stand for the same bytes: the file tells tokens by their bytes.
inline std::string tokenizer_to_json(const Tokenizer& tokenizer) {
  const detail::ByteAlphabet alphabet;
  const auto special = tokenizer.special();
  auto vocabulary = nlohmann::json::object(), merges = nlohmann::json::array(), added = nlohmann::json::array();
  const auto shown = [&](std::int32_t token) { return alphabet.show(tokenizer.bytes_of(token)); };
  for (std::int32_t token = 0; token < static_cast<std::int32_t>(tokenizer.vocabulary()); ++token) {
    if (std::find(special.begin(), special.end(), token) != special.end()) {
      added.push_back({{"id", token},
                       {"content", tokenizer.bytes_of(token)},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    } else if (!tokenizer.bytes_of(token).empty()) {
      auto& number = vocabulary[shown(token)];
      if (!number.is_null())
        throw DataError(text("the tokens ", number.get<std::int32_t>(), " and ", token,
                             " stand for the same bytes, which a tokenizer.json can not say"));
      number = token;
    }
  }
  for (auto [left, right] : tokenizer.merges()) merges.push_back({shown(left), shown(right)});
  auto cuts = nlohmann::json::array();
  std::vector<std::string> patterns(tokenizer.patterns().begin(), tokenizer.patterns().end());
  if (tokenizer.learned()) patterns = {detail::learned_pattern};
  for (auto& pattern : patterns)
    cuts.push_back({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  const auto bytes =
      nlohmann::json{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  cuts.push_back(bytes);
  const nlohmann::json null;
  return nlohmann::json{{"version", "1.0"},
                        {"truncation", null},
                        {"padding", null},
                        {"added_tokens", added},
                        {"normalizer", null},
                        {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", cuts}}},
                        {"post_processor", null},
                        {"decoder", bytes},
                        {"model",
                         {{"type", "BPE"},
                          {"dropout", null},
                          {"unk_token", null},
                          {"continuing_subword_prefix", null},
                          {"end_of_word_suffix", null},
                          {"fuse_unk", false},
                          {"byte_fallback", false},
                          {"ignore_merges", tokenizer.words_first()},
                          {"vocab", vocabulary},
                          {"merges", merges}}}}
             .dump() +
         "\n";
}

}  // namespace zeropp
