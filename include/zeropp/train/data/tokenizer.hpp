// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back: bytes as they are, or byte pairs merged as learned from a text (Sennrich, Haddow and Birch,
// "Neural machine translation of rare words with subword units", ACL 2016). Any bytes come back exactly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/train/checkpoint/checksum.hpp>
#include <zeropp/train/data/words.hpp>

namespace zeropp {

class Tokenizer {
 public:
  using Pair = std::pair<std::int32_t, std::int32_t>;

  /// One token a byte: a vocabulary of 256.
  Tokenizer() {
    for (int b = 0; b < 256; ++b) pieces_.push_back(std::string(1, static_cast<char>(b)));
  }

  /// Learns merges from `sample` until the vocabulary has the size asked for, or nothing occurs twice. The same sample
  /// gives the same tokenizer: of pairs equally frequent the one of smaller tokens is taken.
  static Tokenizer train(std::string_view sample, std::int64_t vocabulary) {
    if (vocabulary < 256 || vocabulary > 65536)
      throw ConfigError(text("a vocabulary of byte pairs holds 256 to 65536 tokens, got ", vocabulary));
    Tokenizer result;
    result.learn(sample, vocabulary);
    return result;
  }

  std::int64_t vocabulary() const { return static_cast<std::int64_t>(pieces_.size()); }
  /// The bytes that a token stands for.
  const std::string& bytes_of(std::int32_t token) const {
    if (token < 0 || token >= vocabulary())
      throw DataError(text("token ", token, " is outside the tokenizer's vocabulary of ", vocabulary()));
    return pieces_[static_cast<std::size_t>(token)];
  }

  std::vector<std::int32_t> encode(std::string_view input) const {
    std::vector<std::int32_t> tokens;
    std::unordered_map<std::string_view, std::vector<std::int32_t>> known;  // words recur
    detail::for_each_word(input, [&](std::string_view word) {
      auto [entry, fresh] = known.try_emplace(word);
      if (fresh) entry->second = encode_word(word);
      tokens.insert(tokens.end(), entry->second.begin(), entry->second.end());
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
  static Tokenizer parse(const std::string& form, const std::string& source);

 private:
  static constexpr std::string_view head = "zeropp tokenizer 1 ";

  void add_merge(Pair pair) {
    ranks_.emplace(pair, static_cast<std::int32_t>(pieces_.size()));
    merges_.push_back(pair);
    pieces_.push_back(pieces_[static_cast<std::size_t>(pair.first)] + pieces_[static_cast<std::size_t>(pair.second)]);
  }

  /// The earliest merge first, until none applies.
  std::vector<std::int32_t> encode_word(std::string_view word) const {
    std::vector<std::int32_t> tokens;
    for (char c : word) tokens.push_back(static_cast<unsigned char>(c));
    for (;;) {
      Pair best_pair;
      std::int32_t best = -1;
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i)
        if (auto found = ranks_.find({tokens[i], tokens[i + 1]});
            found != ranks_.end() && (best < 0 || found->second < best))
          best = found->second, best_pair = found->first;
      if (best < 0) return tokens;
      merge(tokens, best_pair, best);
    }
  }
  static void merge(std::vector<std::int32_t>& tokens, Pair pair, std::int32_t into) {
    std::size_t to = 0;
    for (std::size_t from = 0; from < tokens.size(); ++from)
      if (from + 1 < tokens.size() && tokens[from] == pair.first && tokens[from + 1] == pair.second)
        tokens[to++] = into, ++from;
      else
        tokens[to++] = tokens[from];
    tokens.resize(to);
  }

  void learn(std::string_view sample, std::int64_t vocabulary) {
    struct Word {
      std::vector<std::int32_t> tokens;
      std::int64_t count;
    };
    std::map<std::string_view, std::int64_t> counted;
    detail::for_each_word(sample, [&](std::string_view word) { ++counted[word]; });
    std::vector<Word> words;
    for (const auto& [word, count] : counted) {
      words.push_back({{}, count});
      for (char c : word) words.back().tokens.push_back(static_cast<unsigned char>(c));
    }
    std::map<Pair, std::int64_t> frequency;
    std::map<Pair, std::vector<std::size_t>> places;  // words that hold, or once held, a pair
    auto count_pairs = [&](std::size_t index, std::int64_t sign) {
      const auto& word = words[index];
      for (std::size_t i = 0; i + 1 < word.tokens.size(); ++i) {
        const Pair pair{word.tokens[i], word.tokens[i + 1]};
        frequency[pair] += sign * word.count;
        if (auto& list = places[pair]; sign > 0 && (list.empty() || list.back() != index)) list.push_back(index);
      }
    };
    for (std::size_t i = 0; i < words.size(); ++i) count_pairs(i, 1);
    while (this->vocabulary() < vocabulary) {
      Pair best{};
      std::int64_t most = 1;
      for (const auto& [pair, count] : frequency)  // in the order of pairs: ties go to the smaller one
        if (count > most) best = pair, most = count;
      if (most < 2) return;
      const auto into = static_cast<std::int32_t>(this->vocabulary());
      add_merge(best);
      for (auto index : std::exchange(places[best], {})) {
        count_pairs(index, -1);
        merge(words[index].tokens, best, into);
        count_pairs(index, 1);
      }
      std::erase_if(frequency, [](const auto& entry) { return entry.second == 0; });
    }
  }

  std::vector<std::string> pieces_;
  std::vector<Pair> merges_;
  std::map<Pair, std::int32_t> ranks_;
};

inline Tokenizer Tokenizer::parse(const std::string& form, const std::string& source) {
  const auto damaged = [&](std::string_view what) {
    return DataError(text(source, " is not a tokenizer this version reads: ", what, "; make it again from the text"));
  };
  const auto line = form.find('\n');
  if (line == std::string::npos || !form.starts_with(head)) throw damaged("its first line is wrong");
  const std::string_view merges = std::string_view(form).substr(line + 1);
  std::int64_t vocabulary = 0;
  const char* at = form.data() + head.size();
  const auto size = std::from_chars(at, form.data() + line, vocabulary);
  if (size.ec != std::errc{} ||
      std::string_view(size.ptr, form.data() + line) != " " + checksum_text(Checksum::of(merges)))
    throw damaged("its checksum does not fit its contents");
  Tokenizer result;
  for (at = merges.data(); at < merges.data() + merges.size();) {
    Pair pair;
    const char* end = merges.data() + merges.size();
    auto left = std::from_chars(at, end, pair.first);
    if (left.ec != std::errc{} || left.ptr == end || *left.ptr != ' ') throw damaged("a merge is not two numbers");
    auto right = std::from_chars(left.ptr + 1, end, pair.second);
    if (right.ec != std::errc{} || right.ptr == end || *right.ptr != '\n') throw damaged("a merge is not two numbers");
    if (std::min(pair.first, pair.second) < 0 || std::max(pair.first, pair.second) >= result.vocabulary())
      throw damaged("a merge names a token that does not exist yet");
    result.add_merge(pair);
    at = right.ptr + 1;
  }
  if (result.vocabulary() != vocabulary) throw damaged("it holds another number of merges than it says");
  return result;
}

}  // namespace zeropp
