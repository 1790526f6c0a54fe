// SPDX-License-Identifier: Apache-2.0
// Short runs of a stored tensor, most of which follow one another: a file is read in larger pieces than they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <zeropp/train/checkpoint/safetensors.hpp>

namespace zeropp {

/// Holds at most `most` elements.
template <class T>
class ReadAhead {
 public:
  static constexpr std::size_t most = 1 << 16;

  ReadAhead(Safetensors& file, const StoredTensor& tensor) : file_(file), tensor_(tensor) {}

  /// Elements [first, first + out.size()) of the tensor.
  void read(std::int64_t first, std::span<T> out) {
    if (out.size() >= most) return file_.read(tensor_, first, out);
    const auto end = first + static_cast<std::int64_t>(out.size());
    if (first < begin_ || end > begin_ + static_cast<std::int64_t>(buffer_.size())) {
      begin_ = first;
      buffer_.resize(std::min(most, static_cast<std::size_t>(tensor_.count() - first)));
      file_.read(tensor_, first, std::span{buffer_});
    }
    std::copy_n(buffer_.begin() + static_cast<std::ptrdiff_t>(first - begin_), out.size(), out.begin());
  }

 private:
  Safetensors& file_;
  const StoredTensor& tensor_;
  std::vector<T> buffer_;
  std::int64_t begin_ = 0;
};

}  // namespace zeropp
