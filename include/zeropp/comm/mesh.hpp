// SPDX-License-Identifier: Apache-2.0
// The ranks as a grid of named axes, with a communicator along each: data, tensor, pipeline, context.
//
//   Mesh mesh{world, {.tensor = 2, .pipeline = 2}};   // 16 ranks: 4 data × 2 tensor × 2 pipeline
//   mesh.tensor().all_reduce(data);                    // over the 2 ranks that differ in the tensor axis only
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <zeropp/base/error.hpp>
#include <zeropp/base/shape.hpp>
#include <zeropp/comm/comm.hpp>

namespace zeropp {

enum class Axis : std::uint8_t { data, tensor, pipeline, context };
inline constexpr int mesh_axes = 4;

constexpr std::string_view name_of(Axis axis) {
  constexpr std::array<std::string_view, mesh_axes> names{"data", "tensor", "pipeline", "context"};
  return names[static_cast<std::size_t>(axis)];
}

struct MeshOptions {
  int data = 0;  ///< 0: what the other axes leave
  int tensor = 1;
  int pipeline = 1;
  int context = 1;
  /// From the axis whose neighbours are neighbouring ranks to the one whose neighbours are farthest apart. Tensor ranks
  /// exchange most and so sit closest, pipeline ranks least.
  std::array<Axis, mesh_axes> order{Axis::tensor, Axis::context, Axis::data, Axis::pipeline};
};

namespace detail {
/// Ranks from one place along each axis to the next, where the first axis of `order` has neighbouring ranks.
constexpr std::array<int, mesh_axes> mesh_strides(const std::array<int, mesh_axes>& sizes,
                                                  const std::array<Axis, mesh_axes>& order) {
  std::array<int, mesh_axes> strides{};
  int stride = 1;
  for (const Axis axis : order) {
    strides[static_cast<std::size_t>(axis)] = stride;
    stride *= sizes[static_cast<std::size_t>(axis)];
  }
  return strides;
}
}  // namespace detail

class Mesh {
 public:
  /// One rank.
  Mesh() = default;

  /// Called by all ranks of `world` with the same options. Throws ConfigError, before ranks exchange anything, if the
  /// sizes of the axes don't multiply to the number of ranks or the order doesn't name every axis once.
  explicit Mesh(const Comm& world, const MeshOptions& options = {}) : world_(world) {
    if (world_.label().empty()) world_.label("world");
    sizes_ = {options.data, options.tensor, options.pipeline, options.context};
    fill(options.data == 0);
    place(options.order);
    for (const Axis axis : options.order) comms_[index(axis)] = named(along(axis), name_of(axis));
    sharding_ = size(Axis::context) == 1 ? data()
                : size(Axis::data) == 1  ? context()
                                         : named(along_both(), "data x context");
  }

  const Comm& world() const { return world_; }
  const Comm& comm(Axis axis) const { return comms_[index(axis)]; }
  const Comm& data() const { return comm(Axis::data); }
  const Comm& tensor() const { return comm(Axis::tensor); }
  const Comm& pipeline() const { return comm(Axis::pipeline); }
  const Comm& context() const { return comm(Axis::context); }
  /// The ranks that train one copy of each weight on different tokens: data × context, neighbours along the context.
  /// Training state is sharded over them.
  const Comm& sharding() const { return sharding_; }

  int size(Axis axis) const { return sizes_[index(axis)]; }
  /// Place of this rank along an axis; the rank in comm(axis).
  int coordinate(Axis axis) const { return (world_.rank() / strides_[index(axis)]) % size(axis); }

  /// "8 ranks = 4 data x 2 tensor x 1 pipeline x 1 context"
  std::string describe() const {
    std::string out = text(world_.size(), world_.size() == 1 ? " rank = " : " ranks = ");
    for (std::size_t axis = 0; axis < mesh_axes; ++axis)
      out += text(axis ? " x " : "", sizes_[axis], " ", name_of(static_cast<Axis>(axis)));
    return out;
  }

 private:
  static constexpr std::size_t index(Axis axis) { return static_cast<std::size_t>(axis); }

  void fill(bool data_is_left) {
    std::int64_t rest = 1;
    for (std::size_t axis = 0; axis < mesh_axes; ++axis) {
      const bool is_left = data_is_left && static_cast<Axis>(axis) == Axis::data;
      if (sizes_[axis] < 1 && !is_left)
        throw ConfigError(text("mesh: the ", name_of(static_cast<Axis>(axis)), " axis needs at least 1 rank, got ",
                               sizes_[axis], static_cast<Axis>(axis) == Axis::data ? "; 0 takes what is left" : ""));
      if (!is_left) rest = checked_product(rest, sizes_[axis]);
    }
    const int ranks = world_.size();
    if (data_is_left && ranks % rest == 0) {
      sizes_[index(Axis::data)] = static_cast<int>(ranks / rest);
      return;
    }
    if (!data_is_left && rest == ranks) return;
    throw ConfigError(
        text("mesh: ", describe_request(data_is_left), " do not fill ", ranks, " ranks; ", advice(ranks)));
  }
  std::string describe_request(bool data_is_left) const {
    std::string out;
    for (std::size_t axis = 0; axis < mesh_axes; ++axis)
      if (!(data_is_left && axis == 0))
        out += text(out.empty() ? "" : " x ", sizes_[axis], " ", name_of(static_cast<Axis>(axis)));
    return out;
  }
  /// For each axis the sizes that would do if the other axes stay (and data takes what is left).
  std::string advice(int ranks) const {
    std::string out;
    for (std::size_t axis = 0; axis < mesh_axes; ++axis) {
      std::int64_t others = 1;  // of the axes that somebody has to choose
      for (std::size_t other = 1; other < mesh_axes; ++other)
        if (other != axis) others *= sizes_[other];
      if (ranks % others != 0) continue;
      const auto most = ranks / others;
      std::string values;
      for (std::int64_t value = 1; value <= most; ++value)
        if (axis == 0 ? value == most : most % value == 0) values += text(values.empty() ? "" : ", ", value);
      out += text(out.empty() ? "with the other axes as they are, " : "; or ", name_of(static_cast<Axis>(axis)), " = ",
                  values, axis == 0 ? "" : " with data = 0");
    }
    return out.empty() ? text("choose sizes whose product is ", ranks) : out;
  }

  void place(const std::array<Axis, mesh_axes>& order) {
    std::array<bool, mesh_axes> seen{};
    for (const Axis axis : order) {
      if (seen[index(axis)]) throw ConfigError(text("mesh: the order names the ", name_of(axis), " axis twice"));
      seen[index(axis)] = true;
    }
    strides_ = detail::mesh_strides(sizes_, order);
  }

  /// `comm` under the name that traces give to an axis.
  Comm named(Comm comm, std::string_view axis) const {
    comm.label(axis);
    comm.record(world_.recorder());
    return comm;
  }
  Comm along(Axis axis) const {
    const int stride = strides_[index(axis)], first = world_.rank() - coordinate(axis) * stride;
    std::vector<int> members;
    for (int place = 0; place < size(axis); ++place) members.push_back(first + place * stride);
    return world_.subset(members);
  }

  Comm along_both() const {
    const auto begin = [&](Axis axis) { return coordinate(axis) * strides_[index(axis)]; };
    const int first = world_.rank() - begin(Axis::data) - begin(Axis::context);
    std::vector<int> members;
    for (int d = 0; d < size(Axis::data); ++d)
      for (int c = 0; c < size(Axis::context); ++c)
        members.push_back(first + d * strides_[index(Axis::data)] + c * strides_[index(Axis::context)]);
    return world_.subset(members);
  }

  Comm world_, sharding_;
  std::array<int, mesh_axes> sizes_{1, 1, 1, 1}, strides_{1, 1, 1, 1};
  std::array<Comm, mesh_axes> comms_;
};

}  // namespace zeropp
