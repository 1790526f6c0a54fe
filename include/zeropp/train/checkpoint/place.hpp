// SPDX-License-Identifier: Apache-2.0
// Where a stored piece of a tensor lies in the whole, whoever wrote it: some elements of the part that a tensor rank
// holds, which is some ranges along one axis. Pieces of other ranks and meshes meet in the whole tensor.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/layers/parameter.hpp>

namespace zeropp {

/// All of a tensor, as a part of it.
inline Slice all_of(std::vector<std::int64_t> shape) {
  if (shape.empty()) shape = {1};
  const Range all{0, shape[0]};
  return {std::move(shape), 0, {all}, 1};
}
/// The part of the whole that is here.
inline Slice slice_of(const Parameter& p) { return p.split() ? p.slice : all_of(p.shape); }

/// Elements of the part.
inline std::int64_t count_of(const Slice& part) {
  const auto stride = part.stride();
  return stride.whole ? element_count(part.whole) / stride.whole * stride.part : 0;
}

/// Calls f(index in part a, index in part b, count) for what elements `of_a` of one part and `of_b` of another part of
/// the same tensor have in common, in runs.
template <class F>
void for_each_common_run(const Slice& a, Range of_a, const Slice& b, Range of_b, F&& f) {
  const auto stride = b.stride();
  a.for_each_run(of_a, [&](std::int64_t whole, std::int64_t in_a, std::int64_t count) {
    const Range run{whole, whole + count};
    for (auto o = run.begin / stride.whole; o * stride.whole < run.end; ++o) {
      auto at = o * stride.part;
      for (const auto& range : b.ranges) {
        const Range block{o * stride.whole + range.begin * stride.inner, o * stride.whole + range.end * stride.inner};
        const auto common = run.clipped(block);
        const auto first = at + common.begin - block.begin;
        const auto in_b = of_b.clipped({first, first + common.size()});
        if (in_b.size() > 0) f(in_a + (common.begin - run.begin) + (in_b.begin - first), in_b.begin, in_b.size());
        at += block.size();
      }
    }
  });
}

/// A piece in the words of a file: "BEGIN" of all of the tensor, or "BEGIN AXIS FROM TO [FROM TO ...]" of the part that
/// lies in [FROM, TO) along the axis.
inline std::string place_text(const Slice& part, std::int64_t begin) {
  auto out = text(begin);
  if (part.axis == 0 && part.ranges == all_of(part.whole).ranges) return out;
  out += text(" ", part.axis);
  for (auto& range : part.ranges) out += text(" ", range.begin, " ", range.end);
  return out;
}

/// The way back, for a tensor of shape `whole`; nothing if it makes no sense.
inline std::optional<std::pair<Slice, std::int64_t>> place_from(std::string_view words,
                                                                const std::vector<std::int64_t>& whole) {
  std::vector<std::int64_t> numbers;
  for (const char *at = words.data(), *end = at + words.size();;) {
    std::int64_t number = 0;
    const auto [stop, error] = std::from_chars(at, end, number);
    if (error != std::errc{} || number < 0 || (stop != end && *stop != ' ')) return {};
    numbers.push_back(number);
    if (stop == end) break;
    at = stop + 1;
  }
  auto part = all_of(whole);
  if (numbers.size() > 1) {
    if (numbers.size() % 2 || numbers.size() < 4 || numbers[1] >= static_cast<std::int64_t>(part.whole.size()))
      return {};
    part.axis = static_cast<std::size_t>(numbers[1]);
    part.parts = 2;  // or more: not all of it is here
    part.ranges.clear();
    for (std::size_t i = 2; i < numbers.size(); i += 2) {
      if (numbers[i] > numbers[i + 1] || numbers[i + 1] > part.whole[part.axis]) return {};
      part.ranges.push_back({numbers[i], numbers[i + 1]});
    }
  }
  return std::pair{std::move(part), numbers[0]};
}

}  // namespace zeropp
