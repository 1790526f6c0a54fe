// SPDX-License-Identifier: Apache-2.0
// Cuts text into words before pairs of bytes are merged: letters with the space before them, digits, punctuation, white
// space. No merge crosses a word.
#pragma once

#include <cstddef>
#include <string_view>

namespace zeropp::detail {

enum class ByteKind { letter, digit, space, other };

/// Longer runs are cut, so that the cost of a text stays proportional to its length whatever is in it.
inline constexpr std::size_t longest_word = 64;

/// Bytes above 127 count as letters, so that characters of UTF-8 stay together.
constexpr ByteKind kind_of(char c) {
  const auto b = static_cast<unsigned char>(c);
  if ((b | 32) >= 'a' && (b | 32) <= 'z') return ByteKind::letter;
  if (b >= 128 || b == '\'') return ByteKind::letter;
  if (b >= '0' && b <= '9') return ByteKind::digit;
  if (b == ' ' || (b >= 9 && b <= 13)) return ByteKind::space;
  return ByteKind::other;
}

/// Calls f(word) for each; the words put together are the text.
template <class F>
void for_each_word(std::string_view text, F&& f) {
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin + 1;
    auto kind = kind_of(text[begin]);
    if (text[begin] == ' ' && end < text.size() && kind_of(text[end]) == ByteKind::letter) kind = ByteKind::letter;
    while (end < text.size() && end - begin < longest_word && kind_of(text[end]) == kind) {
      // the last space before letters belongs to them
      if (kind == ByteKind::space && text[end] == ' ' && end + 1 < text.size() &&
          kind_of(text[end + 1]) == ByteKind::letter)
        break;
      ++end;
    }
    f(text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace zeropp::detail
