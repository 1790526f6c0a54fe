// SPDX-License-Identifier: Apache-2.0
// Optimizer states on disk: each rank writes its shard, cut by parameter, with the place of each piece in the whole
// tensor. So any mesh, at any stage, reads the elements that it needs from whichever files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/parallel/sharding/model_parameters.hpp>
#include <zeropp/parallel/sharding/stage.hpp>
#include <zeropp/train/checkpoint/host_copy.hpp>
#include <zeropp/train/checkpoint/manifest.hpp>
#include <zeropp/train/checkpoint/place.hpp>
#include <zeropp/train/checkpoint/read_ahead.hpp>

namespace zeropp {

namespace detail {
inline constexpr std::string_view low_half = "/remainder", whole_master = "/master";

/// The name of the tensor that holds a parameter's slot.
inline std::string slot_tensor(const std::string& parameter, std::string_view slot) {
  return parameter + "/" + std::string(slot);
}
/// The same for a name from a file: before slots had names, Adam's were called first and second.
inline std::string today_s_name(const std::string& name) {
  for (std::string_view old : {"/first", "/second"})
    if (std::string_view(name).ends_with(old)) return name + "_moment";
  return name;
}
}

/// Writes this rank's shard of slots and of what is kept of masters: tensors "<parameter>/<slot>", of shape [n]; where the pieces of a parameter lie is in the metadata under its name (place_text). The first
/// tensor rank writes the parameters that all tensor ranks hold.
template <class Model, class Optim>
FileRecord write_optimizer_file(FileSystem& files, const std::string& folder, Model& model, Optim& optimizer) {
  using State = typename Optim::State;
  using Kept = kept_t<typename Model::Precision::Weight>;
  constexpr auto master = std::is_same_v<Kept, float> ? detail::whole_master : detail::low_half;
  const auto comms = model.comms();
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> places;
  const auto each = [&](auto&& body) {
    std::size_t index = 0;
    for (auto& unit : model.units()) {
      for (auto* p : unit.parameters()) {
        const auto mine = unit.shard().clipped({p->offset, p->offset + p->size()});
        if (mine.size() && (p->split() || comms.tensor.rank() == 0)) body(unit, index, *p, mine);
      }
      ++index;
    }
  };
  each([&](auto& unit, std::size_t, const auto& p, Range mine) {
    places[p.name] = place_text(slice_of(p), mine.begin - p.offset);
    for (auto slot : optimizer.slots())
      specs.push_back({detail::slot_tensor(p.name, slot), dtype_of<State>, {mine.size()}});
    if (!unit.masters().empty()) specs.push_back({p.name + std::string(master), dtype_of<Kept>, {mine.size()}});
  });
  SafetensorsWriter writer(files, folder, Manifest::optimizer_file(comms.world.rank(), comms.world.size()), specs,
                           places);
  each([&](auto& unit, std::size_t index, const auto&, Range mine) {
    const auto at = static_cast<std::size_t>(mine.begin - unit.updated().begin),
               n = static_cast<std::size_t>(mine.size());
    const auto put = [&]<class T>(std::span<T> values) {
      std::vector<T> buffer;
      writer.append(detail::on_host(model.device(), std::span<const T>{values.subspan(at, n)}, buffer));
    };
    for (std::size_t s = 0; s < optimizer.slots().size(); ++s) put(optimizer.slot(s, index));
    if (!unit.masters().empty()) put(unit.masters());
  });
  return writer.finish();
}

/// The optimizer files of a checkpoint, whoever wrote them.
class OptimizerFiles {
 public:
  /// `parameters`: of the whole model. Throws DataError for a file that does not say where a piece lies in them.
  OptimizerFiles(FileSystem& files, const std::string& folder, std::int64_t ranks,
                 const std::vector<ModelParameter>& parameters)
      : folder_(folder) {
    std::map<std::string, const ModelParameter*, std::less<>> by_name;
    for (auto& p : parameters) by_name.emplace(p.name, &p);
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      auto& file = files_.emplace_back(
          std::make_unique<Safetensors>(files, folder + "/" + Manifest::optimizer_file(rank, ranks)));
      for (auto& tensor : file->tensors()) {
        const auto name = tensor.name.substr(0, tensor.name.rfind('/'));
        const auto parameter = by_name.find(name);
        const auto words = file->metadata().find(name);
        auto place = parameter == by_name.end() || words == file->metadata().end()
                         ? std::nullopt
                         : place_from(words->second, parameter->second->shape);
        if (!place || place->second > count_of(place->first) - tensor.count())
          throw DataError(text(file->path(), " does not say where ", tensor.name, " begins"));
        auto& [part, begin] = *place;
        pieces_[detail::today_s_name(tensor.name)].push_back({file.get(), &tensor, std::move(part), {begin, begin + tensor.count()}});
      }
      file->close();  // ranks x files would be too many
    }
    for (auto& [name, pieces] : pieces_) std::sort(pieces.begin(), pieces.end(), before);
  }

  /// Whether any of them holds tensors of this kind: low_half beside bf16 weights, whole_master beside f16.
  bool have(std::string_view kind) const {
    return std::any_of(pieces_.begin(), pieces_.end(),
                       [&](auto& tensor) { return std::string_view(tensor.first).ends_with(kind); });
  }

  /// Throws DataError unless the pieces of `name` are all elements of a tensor of shape `whole`, once each, and T holds
  /// them.
  template <class T>
  void check(const std::string& name, const std::vector<std::int64_t>& whole) const {
    const auto found = pieces_.find(name);
    static const std::vector<Piece> none;
    const auto& pieces = found == pieces_.end() ? none : found->second;
    std::int64_t count = 0;
    for (auto& piece : pieces) count += piece.range.size();
    if (count != element_count(whole))
      throw DataError(text("the optimizer files in ", folder_, " hold ", count, " of ", element_count(whole),
                           " elements of ", name));
    const auto expect = [&](const Piece& piece, std::int64_t begin, std::int64_t at) {
      if (begin != at)
        throw DataError(text(piece.file->path(), ": ", name, " begins at element ", begin, ", expected ", at));
    };
    std::vector<std::pair<Range, const Piece*>> along;  // the ranges of all parts
    for (std::size_t i = 0; i < pieces.size();) {
      const auto& first = pieces[i];
      for (std::int64_t at = 0; i < pieces.size() && pieces[i].part.ranges == first.part.ranges; ++i) {
        auto& piece = pieces[i];
        expect(piece, piece.range.begin, std::exchange(at, piece.range.end));
        if (piece.part.axis != pieces[0].part.axis)
          throw DataError(text(piece.file->path(), ": ", name, " is cut along other axes in other files"));
        if (!holds_exactly<T>(piece.tensor->type.type))
          throw DataError(text(piece.file->path(), ": ", name, " is ", piece.tensor->type.name, ", which ",
                               zeropp::name_of(dtype_of<T>), " does not hold exactly"));
      }
      for (auto& range : first.part.ranges) along.push_back({range, &first});
    }
    std::sort(along.begin(), along.end(), [](auto& a, auto& b) { return a.first.begin < b.first.begin; });
    std::int64_t at = 0;
    for (auto& [range, piece] : along) expect(*piece, range.begin, std::exchange(at, range.end));
  }

  /// Elements `mine` of a part of `name`, which check() has accepted.
  template <class T>
  void read(const std::string& name, const Slice& part, Range mine, std::span<T> out) {
    const auto found = pieces_.find(name);
    if (found == pieces_.end()) return;
    for (auto& piece : found->second) {
      ReadAhead<T> stored(*piece.file, *piece.tensor);
      for_each_common_run(part, mine, piece.part, piece.range, [&](std::int64_t here, std::int64_t there, auto n) {
        stored.read(there - piece.range.begin,
                    out.subspan(static_cast<std::size_t>(here - mine.begin), static_cast<std::size_t>(n)));
      });
      piece.file->close();
    }
  }

 private:
  struct Piece {
    Safetensors* file;
    const StoredTensor* tensor;
    Slice part;
    Range range;  ///< of the part's elements
  };
  /// Pieces of one part stand together, in order.
  static bool before(const Piece& a, const Piece& b) {
    for (std::size_t i = 0; i < std::min(a.part.ranges.size(), b.part.ranges.size()); ++i) {
      const auto &x = a.part.ranges[i], &y = b.part.ranges[i];
      if (!(x == y)) return x.begin != y.begin ? x.begin < y.begin : x.end < y.end;
    }
    if (a.part.ranges.size() != b.part.ranges.size()) return a.part.ranges.size() < b.part.ranges.size();
    return a.range.begin != b.range.begin ? a.range.begin < b.range.begin : a.range.end < b.range.end;
  }

  std::string folder_;
  std::vector<std::unique_ptr<Safetensors>> files_;
  std::map<std::string, std::vector<Piece>> pieces_;
};

/// Fills the slots over updated() from the files.
template <class Model, class Optim>
void read_slots(Model& model, Optim& optimizer, OptimizerFiles& files) {
  using State = typename Optim::State;
  std::vector<State> buffer;
  std::size_t index = 0;
  for (auto& unit : model.units()) {
    for (auto* p : unit.parameters()) {
      const auto mine = unit.updated().clipped({p->offset, p->offset + p->size()});
      const Range range{mine.begin - p->offset, mine.end - p->offset};
      if (mine.size() == 0) continue;
      for (std::size_t s = 0; s < optimizer.slots().size(); ++s) {
        const auto at = static_cast<std::size_t>(mine.begin - unit.updated().begin);
        detail::fill_from_host(model.device(),
                               optimizer.slot(s, index).subspan(at, static_cast<std::size_t>(mine.size())), buffer,
                               [&](std::span<State> out) {
                                 files.read(detail::slot_tensor(p->name, optimizer.slots()[s]), slice_of(*p), range,
                                            out);
                               });
      }
    }
    ++index;
  }
}

}  // namespace zeropp
