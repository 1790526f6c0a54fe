// SPDX-License-Identifier: Apache-2.0
// A parameter as a layer declares it: a name, a shape, how it begins. The owner of the memory (`Sharded`) places it;
// the layer reads it through its context and never knows where it lives, in which precision, or how many ranks share
// it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/base/init.hpp>
#include <zeropp/base/shape.hpp>

namespace zeropp {

/// Which part of a tensor is here, where tensor ranks share it: some ranges along one axis, side by side.
struct Slice {
  std::vector<std::int64_t> whole;  ///< shape of the whole tensor; empty: nothing is cut away
  std::size_t axis = 0;
  std::vector<Range> ranges;  ///< of the axis; together as long as the axis of the part
  int parts = 1;              ///< ranks that share the tensor

  /// Elements of one step along the axis, and of all its steps in the whole and in the part.
  struct Stride {
    std::int64_t inner = 1, whole = 0, part = 0;
  };
  Stride stride() const {
    Stride stride;
    for (std::size_t i = axis + 1; i < whole.size(); ++i) stride.inner *= whole[i];
    stride.whole = whole[axis] * stride.inner;
    for (const auto& range : ranges) stride.part += range.size() * stride.inner;
    return stride;
  }
  /// Calls f(index in the whole, index in the part, count) for elements `mine` of the part, in runs that are
  /// consecutive in both.
  template <class F>
  void for_each_run(Range mine, F&& f) const {
    const auto step = stride();
    if (mine.size() <= 0 || step.part == 0) return;
    for (auto o = mine.begin / step.part; o * step.part < mine.end; ++o) {
      auto at = o * step.part;
      for (const auto& range : ranges) {
        const auto count = range.size() * step.inner;
        const auto run = mine.clipped({at, at + count});
        if (run.size() > 0) f(o * step.whole + range.begin * step.inner + (run.begin - at), run.begin, run.size());
        at += count;
      }
    }
  }
};

struct Parameter {
  std::string name;                 ///< unique in a model; the name in a checkpoint
  std::vector<std::int64_t> shape;  ///< C order
  Init init = {};
  bool decay = false;        ///< weight decay applies (by custom: matrices yes, biases and norms no)
  std::string tied_to = {};  ///< not empty: shares the memory of the parameter of that name
  Slice slice = {};          ///< where `shape` lies in the whole, under TensorParallel
  /// Held whole by every tensor rank, each of which computes the gradient of its own part of the sequence only: these
  /// are summed over the tensor ranks too.
  bool sum_over_tensor = false;
  /// Comm::identity() of the tensor ranks that hold it, each a slice or all of it; null where nobody shares it. A model
  /// is compared with its mesh by it.
  const void* tensor_group = nullptr;
  /// Under PipelineStage: its place in the order of the whole model, and the stage that holds the parameter it is tied
  /// to, or that holds the one tied to it; -1: this stage.
  int order = -1, tied_stage = -1;

  // Where it lives; set by the owner of the memory, null while not resident.
  void* value = nullptr;        ///< Precision::Weight[size()]
  void* gradient = nullptr;     ///< Precision::Gradient[size()]
  bool gradient_unset = false;  ///< nothing has been written there yet: it counts as zero
  int unit = -1;                ///< the unit that owns it
  std::int64_t offset = 0;      ///< its first element in the flat buffer of that unit

  std::int64_t size() const { return element_count(shape); }
  /// Shape of the whole tensor: the one in a checkpoint.
  const std::vector<std::int64_t>& whole_shape() const { return slice.whole.empty() ? shape : slice.whole; }
  bool split() const { return !slice.whole.empty(); }
  /// Calls f(index in the whole tensor, index here, count) for runs of elements that are consecutive in both.
  template <class F>
  void for_each_run(F&& f) const {
    if (split())
      slice.for_each_run({0, size()}, f);
    else
      f(std::int64_t{0}, std::int64_t{0}, size());
  }
};

/// Throws ConfigError: a second parameter of one name.
[[noreturn]] inline void refuse_second(const Parameter& p) {
  throw ConfigError(text("two parameters are called ", p.name, "; give each layer a name of its own"));
}

/// Throws ConfigError unless `tied` can share the weights of `owner`, which is null where no layer declares it.
inline void check_tie(const Parameter& tied, const Parameter* owner) {
  if (!owner)
    throw ConfigError(text("parameter ", tied.name, " is tied to ", tied.tied_to, ", which no layer declares"));
  if (owner->shape != tied.shape)
    throw ConfigError(text("parameter ", tied.name, " of shape ", shape_text(tied.shape), " is tied to ", tied.tied_to,
                           " of shape ", shape_text(owner->shape), "; tied shapes must be equal"));
}

}  // namespace zeropp
