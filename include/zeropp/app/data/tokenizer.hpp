// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back: bytes as they are, or byte pairs merged as learned from a text. Any bytes come back exactly.
#pragma once

#include <charconv>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/train/checkpoint/checksum.hpp>
#include <zeropp/train/checkpoint/file.hpp>
#include <zeropp/app/data/byte_pairs.hpp>
#include <zeropp/app/data/words.hpp>

namespace zeropp {

/// Tokens 0 to 255 are the bytes; token 256 + i is what merge i makes of its two.
class Tokenizer {
 public:
  static constexpr std::int64_t largest_vocabulary = 65536;  ///< so that a token fits in 16 bits

  /// One token a byte: a vocabulary of 256.
  Tokenizer() {
    for (int b = 0; b < 256; ++b) pieces_.emplace_back(1, static_cast<char>(b));
  }

  /// Learns merges from `sample` until the vocabulary has the size asked for, or nothing occurs twice. The same sample
  /// gives the same tokenizer: of pairs equally frequent the one of smaller tokens is taken. Throws ConfigError.
  static Tokenizer train(std::string_view sample, std::int64_t vocabulary) {
    if (vocabulary < 256 || vocabulary > largest_vocabulary)
      throw ConfigError(text("a vocabulary of byte pairs holds 256 to 65536 tokens, got ", vocabulary));
    Tokenizer result;
    if (vocabulary == 256) return result;
    detail::PairLearner learner(sample);
    for (BytePair pair; result.vocabulary() < vocabulary && learner.most_frequent(pair);) {
      learner.merge(pair, static_cast<std::int32_t>(result.vocabulary()));
      result.add(pair);
    }
    return result;
  }

  std::int64_t vocabulary() const { return static_cast<std::int64_t>(pieces_.size()); }
  /// The bytes that a token stands for. Throws DataError for a number that is none.
  const std::string& bytes_of(std::int32_t token) const {
    if (token < 0 || token >= vocabulary())
      throw DataError(text("token ", token, " is outside the tokenizer's vocabulary of ", vocabulary(),
                           "; use the tokenizer that made it"));
    return pieces_[static_cast<std::size_t>(token)];
  }
  std::span<const BytePair> merges() const { return merges_; }

  std::vector<std::int32_t> encode(std::string_view input) const {
    std::vector<std::int32_t> tokens;
    std::unordered_map<std::string_view, std::pair<std::size_t, std::size_t>> known;  // words recur: where one stands
    detail::for_each_word(input, [&](std::string_view word) {
      const auto [entry, fresh] = known.try_emplace(word, tokens.size(), 0);
      auto& [begin, count] = entry->second;
      if (fresh) {
        append_word(word, tokens);
        count = tokens.size() - begin;
      } else {
        for (std::size_t i = begin; i < begin + count; ++i) tokens.push_back(tokens[i]);
      }
    });
    return tokens;
  }
  std::string decode(std::span<const std::int32_t> tokens) const {
    std::string out;
    for (auto token : tokens) out += bytes_of(token);
    return out;
  }

  /// A text form: a head with the vocabulary and a checksum of the rest, then one merge a line.
  std::string serialise() const {
    std::string merges;
    for (const auto& [left, right] : merges_) merges += text(left, " ", right, "\n");
    return text(head, pieces_.size(), " ", checksum_text(Checksum::of(merges)), "\n") + merges;
  }
  /// Throws DataError where the form is damaged; `source` names it in the sentence.
  static Tokenizer parse(std::string_view form, const std::string& source);

  /// Replaces what is at `path` once the new form is complete. Throws DataError.
  void save(const std::string& path, FileSystem& files = FileSystem::system()) const {
    const auto temporary = path + ".writing";
    files.remove(temporary);  // of a save that was killed
    auto file = File::create(files, temporary);
    file.write(serialise());
    file.sync();
    file.close();
    files.rename(temporary, path);
  }
  /// Throws DataError: missing, unreadable, damaged.
  static Tokenizer load(const std::string& path, FileSystem& files = FileSystem::system()) {
    return parse(read_text(files, path), path);
  }

  friend bool operator==(const Tokenizer& a, const Tokenizer& b) { return a.merges_ == b.merges_; }

 private:
  static constexpr std::string_view head = "zeropp tokenizer 1 ";

  void add(BytePair pair) {
    made_.emplace(detail::key_of(pair), static_cast<std::int32_t>(pieces_.size()));
    merges_.push_back(pair);
    pieces_.push_back(pieces_[static_cast<std::size_t>(pair.left)] + pieces_[static_cast<std::size_t>(pair.right)]);
  }

  /// The earliest merge first, until none applies.
  void append_word(std::string_view word, std::vector<std::int32_t>& tokens) const {
    const auto begin = tokens.size();
    for (char c : word) tokens.push_back(static_cast<unsigned char>(c));
    if (merges_.empty()) return;
    for (;;) {
      std::int32_t best = static_cast<std::int32_t>(pieces_.size());
      for (std::size_t i = begin; i + 1 < tokens.size(); ++i)
        if (auto found = made_.find(detail::key_of({tokens[i], tokens[i + 1]}));
            found != made_.end() && found->second < best)
          best = found->second;
      if (best == static_cast<std::int32_t>(pieces_.size())) return;
      const auto [left, right] = merges_[static_cast<std::size_t>(best) - 256];
      std::size_t to = begin;
      for (std::size_t from = begin; from < tokens.size(); ++from) {
        const bool both = from + 1 < tokens.size() && tokens[from] == left && tokens[from + 1] == right;
        tokens[to++] = both ? best : tokens[from];
        from += both;
      }
      tokens.resize(to);
    }
  }

  std::vector<std::string> pieces_;
  std::vector<BytePair> merges_;
  std::unordered_map<std::uint64_t, std::int32_t, detail::PairHash> made_;
};

inline Tokenizer Tokenizer::parse(std::string_view form, const std::string& source) {
  const auto expect = [&](bool well, std::string_view what) {
    if (!well)
      throw DataError(text(source, " is not a tokenizer that this version reads: ", what, "; make it again from its text"));
  };
  const auto line = form.find('\n');
  expect(form.starts_with(head) && line != form.npos, "its first line is wrong");
  const auto merges = form.substr(line + 1);
  const char* const end = form.data() + form.size();
  std::int64_t vocabulary = 0;
  const auto size = std::from_chars(form.data() + head.size(), end, vocabulary);
  expect(size.ec == std::errc{} && std::string_view(size.ptr, static_cast<std::size_t>(merges.data() - size.ptr)) ==
                                       " " + checksum_text(Checksum::of(merges)) + "\n",
         "its checksum does not fit its contents");
  expect(vocabulary >= 256 && vocabulary <= largest_vocabulary, "its vocabulary is not of 256 to 65536 tokens");
  Tokenizer result;
  for (const char* at = merges.data(); at < end;) {
    BytePair pair;
    const auto left = std::from_chars(at, end, pair.left);
    expect(left.ec == std::errc{} && left.ptr < end && *left.ptr == ' ', "a merge is not two numbers");
    const auto right = std::from_chars(left.ptr + 1, end, pair.right);
    expect(right.ec == std::errc{} && right.ptr < end && *right.ptr == '\n', "a merge is not two numbers");
    at = right.ptr + 1;
    const auto known = [&](std::int32_t token) { return token >= 0 && token < result.vocabulary(); };
    expect(known(pair.left) && known(pair.right), "a merge names a token that does not exist yet");
    expect(!result.made_.contains(detail::key_of(pair)), "it makes one merge twice");
    expect(result.bytes_of(pair.left).size() + result.bytes_of(pair.right).size() <= detail::longest_word,
           "a merge is longer than any word");
    expect(result.vocabulary() < vocabulary, "it holds more merges than it says");
    result.add(pair);
  }
  expect(result.vocabulary() == vocabulary, "it holds fewer merges than it says");
  return result;
}

}  // namespace zeropp
