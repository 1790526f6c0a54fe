// SPDX-License-Identifier: Apache-2.0
// A tensor: extents and a handle to shared storage. Copies share; the last one frees. A layer's saved tensors are moved
// into its backward and die there.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include <zeropp/base/shape.hpp>
#include <zeropp/device/pool.hpp>

namespace zeropp {

template <class T, int Rank_>
class Tensor {
 public:
  using Element = T;
  static constexpr int Rank = Rank_;

  Tensor() = default;
  Tensor(Pool& pool, Extents<Rank> shape, Purpose purpose = Purpose::activations) : shape_(shape) {
    storage_ = pool.take_temporary(static_cast<std::size_t>(checked_product(element_count(shape), sizeof(T))), purpose);
  }

  const Extents<Rank>& shape() const { return shape_; }
  std::int64_t extent(int axis) const { return shape_[static_cast<std::size_t>(axis < 0 ? axis + Rank : axis)]; }
  std::int64_t size() const {
    std::int64_t count = 1;
    for (auto e : shape_) count *= e;
    return count;
  }
  /// All extents but the last, multiplied: a [B, T, C] tensor has B·T rows of C.
  std::int64_t rows() const {
    std::int64_t count = 1;
    for (int i = 0; i + 1 < Rank; ++i) count *= extent(i);
    return count;
  }

  T* data() const { return reinterpret_cast<T*>(storage_.get()); }
  std::span<T> span() const { return {data(), static_cast<std::size_t>(size())}; }
  explicit operator bool() const { return storage_ != nullptr; }
  /// True if no other handle sees this storage: it may be overwritten.
  bool unique() const { return storage_.use_count() == 1; }

  /// Indices [begin, end) of the first axis; shares the storage.
  Tensor slice(std::int64_t begin, std::int64_t end) const {
    auto shape = shape_;
    const auto stride = shape[0] ? size() / shape[0] : 0;
    shape[0] = end - begin;
    return {shape, Storage(storage_, reinterpret_cast<std::byte*>(data() + begin * stride))};
  }

  /// The same storage under other extents of the same count.
  template <int R>
  Tensor<T, R> reshape(Extents<R> shape) const {
    if (element_count(shape) != size())
      throw ConfigError(text("a tensor of shape ", shape_text(shape_), " cannot be seen as ", shape_text(shape)));
    return {shape, storage_};
  }
  Tensor(Extents<Rank> shape, Storage storage) : shape_(shape), storage_(std::move(storage)) {}

 private:
  Extents<Rank> shape_{};
  Storage storage_;
};

}  // namespace zeropp
