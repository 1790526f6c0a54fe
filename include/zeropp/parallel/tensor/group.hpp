// SPDX-License-Identifier: Apache-2.0
// The exchanges of tensor ranks between layers. Forward and backward of a split product need two operations, each the
// other's transpose: Megatron's f and g, and with a shared sequence their g and ḡ.
#pragma once

#include <utility>
#include <vector>

#include <zeropp/comm/on_device.hpp>
#include <zeropp/device/tensor.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/parallel/tensor/rule.hpp>

namespace zeropp {

class TensorGroup {
 public:
  explicit TensorGroup(const TensorOptions& o)
      : comm_(o.comm), sequence_parallel_(o.sequence_parallel && o.comm.size() > 1) {}

  const Comm& host() const { return comm_.host(); }
  const Comm& comm() const { return comm_; }  ///< as it was given: what cut() is told
  /// The communicator that moves the memory of the context's device.
  template <class C>
  Comm comm(C& ctx) const {
    return on_device(comm_, ctx.device);
  }
  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  /// Whether ranks hold parts of the sequence between layers.
  bool sequence_parallel() const { return sequence_parallel_; }
  SequenceShard sequence_shard() const { return sequence_parallel_ ? SequenceShard{rank(), size()} : SequenceShard{}; }

  /// Before a product that is split by its outputs (and of the gradient of one that is split by its inputs):
  /// [B, T / ranks, ...] to [B, T, ...], or x as it is.
  template <class C, class T, int R>
  Tensor<T, R> whole(C& ctx, Tensor<T, R> x) const {
    if (!sequence_parallel_) return x;
    auto shape = x.shape();
    shape[1] *= size();
    auto y = ctx.template make<R, T>(shape);
    comm(ctx).all_gather(dtype_of<T>, pieces(y, x));
    return y;
  }

  /// After a product that is split by its inputs (and of the gradient of one that is split by its outputs): the sum
  /// over ranks, [B, T, ...] to [B, T / ranks, ...], or all of it on every rank, in the memory of x. Throws ConfigError
  /// unless ranks divide T.
  template <class C, class T, int R>
  Tensor<T, R> sum(C& ctx, Tensor<T, R> x) const {
    if (size() == 1) return x;
    if (!sequence_parallel_) {
      comm(ctx).all_reduce(x.span());
      return x;
    }
    auto shape = x.shape();
    if (shape[1] % size())
      throw ConfigError(text("sequences of ", shape[1], " tokens are not divisible by ", size(),
                             " tensor ranks; choose another length, or leave out .sequence_parallel"));
    shape[1] /= size();
    auto y = ctx.template make<R, T>(shape);
    comm(ctx).reduce_scatter(dtype_of<T>, pieces(x, y));
    return y;
  }

  /// A parameter that every rank holds whole, used on what lies between the split products.
  void replicate(Parameter& p) const {
    p.sum_over_tensor = sequence_parallel_;
    if (size() > 1) p.tensor_group = comm_.identity();
  }

 private:
  template <class T, int R>
  static std::vector<Piece> pieces(const Tensor<T, R>& whole, const Tensor<T, R>& part) {
    static_assert(R >= 2, "a shared sequence is the second axis, [B, T, ...]");
    std::vector<Piece> all;
    const auto row = whole.extent(0) ? whole.size() / whole.extent(0) : 0,
               share = whole.extent(0) ? part.size() / whole.extent(0) : 0;
    for (std::int64_t b = 0; b < whole.extent(0); ++b)
      all.push_back({whole.data() + b * row, part.data() + b * share, row});
    return all;
  }

  Comm comm_;
  bool sequence_parallel_;
};

}  // namespace zeropp
