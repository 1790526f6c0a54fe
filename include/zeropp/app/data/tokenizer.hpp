// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back: bytes as they are, byte pairs merged as learned from a text, or the byte pairs of another
// library's tokenizer (tokenizer_json.hpp, tiktoken.hpp). Any bytes come back exactly.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/app/data/byte_pairs.hpp>
#include <zeropp/app/data/pattern.hpp>
#include <zeropp/app/data/words.hpp>
#include <zeropp/base/error.hpp>
#include <zeropp/train/checkpoint/checksum.hpp>
#include <zeropp/train/checkpoint/file.hpp>

namespace zeropp {

/// A tokenizer of byte pairs in parts, as other libraries describe it.
struct TokenizerParts {
  struct Merge {
    BytePair pair;
    std::int32_t rank, into;  ///< the lowest rank first
  };
  std::vector<std::string> pieces;      ///< bytes of each token; empty for numbers that stand for nothing
  std::array<std::int32_t, 256> bytes;  ///< tokens of single bytes
  std::vector<Merge> merges;
  std::vector<std::int32_t> special = {};  ///< tokens that are found in a text as a whole and stand for no bytes of it
  std::vector<std::string> patterns = {};  ///< cut a text into words, one after the other
  bool words_first = false;                ///< a word that is a token stays whole
  bool learned = false;                    ///< words are those of for_each_word, in the place of patterns
  std::string cannot_encode = {};          ///< why texts can not be encoded; tokens are decoded all the same
};

/// Learned by train(), tokens 0 to 255 are the bytes and token 256 + i is what merge i makes of its two.
class Tokenizer {
 public:
  static constexpr std::int64_t largest_vocabulary = 65536;  ///< so that a token fits in 16 bits

  /// One token a byte: a vocabulary of 256.
  Tokenizer() {
    for (int b = 0; b < 256; ++b)
      pieces_.emplace_back(1, static_cast<char>(b)), bytes_[static_cast<std::size_t>(b)] = b;
  }
  /// Texts are cut by the patterns, which needs libpcre2 (see Pattern), or else not encoded. Throws DataError.
  explicit Tokenizer(TokenizerParts parts)
      : pieces_(std::move(parts.pieces)),
        bytes_(parts.bytes),
        special_(std::move(parts.special)),
        patterns_(std::move(parts.patterns)),
        cannot_encode_(std::move(parts.cannot_encode)),
        learned_(parts.learned) {
    for (const auto& [pair, rank, into] : parts.merges) {
      made_.emplace(detail::key_of(pair), Made{rank, into});
      merges_.push_back(pair);
    }
    if (parts.words_first)
      for (std::size_t i = 0; i < pieces_.size(); ++i) words_.emplace(pieces_[i], static_cast<std::int32_t>(i));
    for (auto token : special_) words_.erase(bytes_of(token));
    if (Pattern::available && cannot_encode_.empty())
      for (auto& pattern : patterns_) cut_.push_back(std::make_shared<const Pattern>(pattern));
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
  std::span<const std::int32_t> special() const { return special_; }
  std::span<const std::string> patterns() const { return patterns_; }
  bool learned() const { return learned_; }  ///< by train(): words are cut by for_each_word
  bool encodes() const { return cannot_encode_.empty(); }  ///< texts, given libpcre2 where patterns cut them
  bool words_first() const { return !words_.empty(); }
  std::int32_t token_of_byte(unsigned char byte) const { return bytes_[byte]; }

  /// Throws ConfigError where texts can not be encoded here, and says why.
  std::vector<std::int32_t> encode(std::string_view input) const {
    if (!cannot_encode_.empty()) throw ConfigError(cannot_encode_);
    if (cut_.size() < patterns_.size()) (void)Pattern(patterns_[0]);  // there is no libpcre2: says so
    std::vector<std::int32_t> tokens;
    std::unordered_map<std::string_view, std::pair<std::size_t, std::size_t>> known;  // words recur: where one stands
    const auto add_word = [&](std::string_view word) {
      const auto [entry, fresh] = known.try_emplace(word, tokens.size(), 0);
      auto& [begin, count] = entry->second;
      if (fresh) {
        append_word(word, tokens);
        count = tokens.size() - begin;
      } else {
        for (std::size_t i = begin; i < begin + count; ++i) tokens.push_back(tokens[i]);
      }
    };
    std::vector<std::size_t> places(special_.size());  // where each special token stands next; 0: not looked for yet
    for (std::size_t begin = 0; begin < input.size() || begin == 0;) {
      std::int32_t token = -1;
      const auto next = next_special(input, begin, places, token);
      if (learned_)
        detail::for_each_word(input.substr(begin, next - begin), add_word);
      else
        cut(input.substr(begin, next - begin), 0, add_word);
      if (token < 0) break;
      tokens.push_back(token);
      begin = next + bytes_of(token).size();
    }
    return tokens;
  }
  std::string decode(std::span<const std::int32_t> tokens) const {
    std::string out;
    for (auto token : tokens) out += bytes_of(token);
    return out;
  }
  /// The bytes of a text that a token stands for: special ones stand for none.
  std::int64_t length_of(std::int32_t token) const {
    const bool special = std::find(special_.begin(), special_.end(), token) != special_.end();
    return special ? 0 : static_cast<std::int64_t>(bytes_of(token).size());
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

  friend bool operator==(const Tokenizer& a, const Tokenizer& b) {
    return a.pieces_ == b.pieces_ && a.merges_ == b.merges_ && a.special_ == b.special_ && a.patterns_ == b.patterns_;
  }

 private:
  static constexpr std::string_view head = "zeropp tokenizer 1 ";

  struct Made {
    std::int32_t rank, into;
  };
  static constexpr Made none{std::numeric_limits<std::int32_t>::max(), -1};

  void add(BytePair pair) {
    made_.emplace(detail::key_of(pair),
                  Made{static_cast<std::int32_t>(merges_.size()), static_cast<std::int32_t>(pieces_.size())});
    merges_.push_back(pair);
    pieces_.push_back(pieces_[static_cast<std::size_t>(pair.left)] + pieces_[static_cast<std::size_t>(pair.right)]);
  }
  Made made_of(std::int32_t left, std::int32_t right) const {
    const auto found = made_.find(detail::key_of({left, right}));
    return found == made_.end() ? none : found->second;
  }

  /// Where the next special token stands, or the end of the input.
  std::size_t next_special(std::string_view input, std::size_t begin, std::vector<std::size_t>& places,
                           std::int32_t& token) const {
    auto next = input.size();
    for (std::size_t i = 0; i < special_.size(); ++i) {
      if (auto& place = places[i]; place < begin || begin == 0) place = input.find(bytes_of(special_[i]), begin);
      if (places[i] < next) next = places[i], token = special_[i];
    }
    return next;
  }

  template <class F>
  void cut(std::string_view input, std::size_t pattern, F&& f) const {
    if (pattern == cut_.size()) {
      if (!input.empty()) f(input);
      return;
    }
    cut_[pattern]->for_each_piece(input, [&](std::string_view piece) { cut(piece, pattern + 1, f); });
  }

  /// The merge of the lowest rank first, from the left, until none applies.
  void append_word(std::string_view word, std::vector<std::int32_t>& tokens) const {
    if (!words_.empty())
      if (const auto whole = words_.find(std::string(word)); whole != words_.end())
        return tokens.push_back(whole->second);
    const auto begin = tokens.size();
    for (char c : word) tokens.push_back(bytes_[static_cast<unsigned char>(c)]);
    if (merges_.empty()) return;
    for (;;) {
      auto best = none.rank;
      for (std::size_t i = begin; i + 1 < tokens.size(); ++i)
        best = std::min(best, made_of(tokens[i], tokens[i + 1]).rank);
      if (best == none.rank) return;
      std::size_t to = begin;
      bool lower = false;  // a merge made a pair of a lower rank: it comes before the rest of these
      for (std::size_t from = begin; from < tokens.size(); ++from) {
        const auto made = !lower && from + 1 < tokens.size() ? made_of(tokens[from], tokens[from + 1]) : none;
        const bool both = made.rank == best;
        tokens[to++] = both ? made.into : tokens[from];
        from += both;
        if (both)
          lower = (to - begin > 1 && made_of(tokens[to - 2], made.into).rank < best) ||
                  (from + 1 < tokens.size() && made_of(made.into, tokens[from + 1]).rank < best);
      }
      tokens.resize(to);
    }
  }

  std::vector<std::string> pieces_;
  std::array<std::int32_t, 256> bytes_{};
  std::vector<BytePair> merges_;
  std::unordered_map<std::uint64_t, Made, detail::PairHash> made_;
  std::vector<std::int32_t> special_;
  std::vector<std::string> patterns_;
  std::vector<std::shared_ptr<const Pattern>> cut_;
  std::unordered_map<std::string, std::int32_t> words_;  ///< those that stay whole
  std::string cannot_encode_;
  bool learned_ = true;
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
