// SPDX-License-Identifier: Apache-2.0
// Learns which pairs of bytes, and of what was merged before, to merge: always the most frequent one next (Sennrich,
// Haddow and Birch, "Neural machine translation of rare words with subword units", ACL 2016).
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <zeropp/app/data/words.hpp>

namespace zeropp {

/// Two tokens that become one.
struct BytePair {
  std::int32_t left = 0, right = 0;
  friend bool operator==(const BytePair&, const BytePair&) = default;
};

namespace detail {

/// Orders as the pair does, and hashes well: neighbouring tokens must not fall on neighbouring buckets only.
constexpr std::uint64_t key_of(BytePair pair) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(pair.left)) << 32 |
         static_cast<std::uint32_t>(pair.right);
}
struct PairHash {
  std::size_t operator()(std::uint64_t key) const {
    key *= 0x9e3779b97f4a7c15ull;
    return static_cast<std::size_t>(key ^ key >> 32);
  }
};

/// Counts of pairs in the words of a text, kept up to date under merges. A merge costs what it changes.
class PairLearner {
 public:
  explicit PairLearner(std::string_view sample) {
    std::unordered_map<std::string_view, std::int64_t> counted;
    for_each_word(sample, [&](std::string_view word) { ++counted[word]; });
    for (const auto& [word, count] : counted) {
      words_.push_back({{}, count});
      for (char c : word) words_.back().tokens.push_back(static_cast<unsigned char>(c));
      const auto& tokens = words_.back().tokens;
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i) add({tokens[i], tokens[i + 1]}, words_.size() - 1);
    }
    for (const auto& [key, pair] : pairs_) queue_.push({pair.count, key});
  }

  /// The most frequent pair, which must occur twice; of equally frequent ones that of the smaller tokens. False if
  /// there is none.
  bool most_frequent(BytePair& best) {
    while (!queue_.empty()) {
      const auto [count, key] = queue_.top();
      queue_.pop();
      const auto now = pairs_.at(key).count;
      if (now < count) {  // merges of others took some away: it waits for its turn
        queue_.push({now, key});
        continue;
      }
      best = {static_cast<std::int32_t>(key >> 32), static_cast<std::int32_t>(key & 0xffffffffu)};
      return count >= 2;
    }
    return false;
  }

  void merge(BytePair pair, std::int32_t into) {
    fresh_.clear();
    for (auto index : std::exchange(pairs_.at(key_of(pair)).words, {})) {
      auto& [tokens, count] = words_[index];
      std::size_t to = 0;
      for (std::size_t from = 0; from < tokens.size(); ++from) {
        if (from + 1 == tokens.size() || tokens[from] != pair.left || tokens[from + 1] != pair.right) {
          tokens[to++] = tokens[from];
          continue;
        }
        take(pair, count);
        if (to > 0) take({tokens[to - 1], pair.left}, count), add({tokens[to - 1], into}, index);
        if (from + 2 < tokens.size()) take({pair.right, tokens[from + 2]}, count), add({into, tokens[from + 2]}, index);
        tokens[to++] = into;
        ++from;
      }
      tokens.resize(to);
    }
    for (auto key : fresh_) queue_.push({pairs_.at(key).count, key});
  }

 private:
  struct Word {
    std::vector<std::int32_t> tokens;
    std::int64_t count;  ///< of times it occurs
  };
  struct Places {
    std::int64_t count = 0;
    std::vector<std::size_t> words;  ///< that hold, or once held, the pair
  };
  struct Candidate {
    std::int64_t count;
    std::uint64_t key;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  void take(BytePair pair, std::int64_t count) { pairs_.at(key_of(pair)).count -= count; }
  void add(BytePair pair, std::size_t word) {
    const auto key = key_of(pair);
    const auto [entry, fresh] = pairs_.try_emplace(key);
    if (fresh) fresh_.push_back(key);
    entry->second.count += words_[word].count;
    if (auto& list = entry->second.words; list.empty() || list.back() != word) list.push_back(word);
  }

  std::vector<Word> words_;
  std::unordered_map<std::uint64_t, Places, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;  ///< counts as they were: never too small, since only new pairs gain
  std::vector<std::uint64_t> fresh_;
};

}  // namespace detail
}  // namespace zeropp
