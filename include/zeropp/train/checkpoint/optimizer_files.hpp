// SPDX-License-Identifier: Apache-2.0
// Optimizer states on disk: each data rank writes its shard, cut by parameter, with the place of each piece in the
// flattened parameter. So any number of ranks, at any stage, reads the ranges that it needs from whichever files.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/parallel/stage.hpp>
#include <zeropp/train/checkpoint/manifest.hpp>

namespace zeropp {

namespace detail {
inline constexpr std::string_view first_moment = "/first", second_moment = "/second", low_half = "/remainder";
}

/// Writes this rank's shard of moments and remainders: tensors "<parameter>/first" and so on, of shape [n]; where a
/// piece begins in its parameter is in the metadata under the parameter's name.
template <class Model, class Adam>
FileRecord write_optimizer_file(FileSystem& files, const std::string& folder, Model& model, Adam& adam) {
  using Moment = typename Adam::Moment;
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> begins;
  const auto each = [&](auto&& body) {
    std::size_t index = 0;
    for (auto& unit : model.units()) {
      for (auto* p : unit.parameters()) {
        const auto mine = unit.shard().clipped({p->offset, p->offset + p->size()});
        if (mine.size()) body(unit, index, *p, mine);
      }
      ++index;
    }
  };
  each([&](auto& unit, std::size_t, const auto& p, Range mine) {
    begins[p.name] = text(mine.begin - p.offset);
    for (auto kind : {detail::first_moment, detail::second_moment})
      specs.push_back({p.name + std::string(kind), dtype_of<Moment>, {mine.size()}});
    if (!unit.remainder().empty()) specs.push_back({p.name + std::string(detail::low_half), DType::i16, {mine.size()}});
  });
  SafetensorsWriter writer(files, folder, Manifest::optimizer_file(model.comm().rank(), model.comm().size()), specs,
                           begins);
  each([&](auto& unit, std::size_t index, const auto&, Range mine) {
    const auto at = static_cast<std::size_t>(mine.begin - unit.update().begin),
               n = static_cast<std::size_t>(mine.size());
    const auto put = [&]<class T>(std::span<T> values) { writer.append(std::span<const T>{values.subspan(at, n)}); };
    put(adam.first(index));
    put(adam.second(index));
    if (!unit.remainder().empty()) put(unit.remainder());
  });
  return writer.finish();
}

/// The optimizer files of a checkpoint, whoever wrote them.
class OptimizerFiles {
 public:
  OptimizerFiles(FileSystem& files, const std::string& folder, std::int64_t ranks) : folder_(folder) {
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      auto& file = files_.emplace_back(
          std::make_unique<Safetensors>(files, folder + "/" + Manifest::optimizer_file(rank, ranks)));
      for (auto& tensor : file->tensors()) {
        const auto parameter = tensor.name.substr(0, tensor.name.rfind('/'));
        const auto begin = file->metadata().find(parameter);
        std::int64_t at = -1;
        if (begin != file->metadata().end())
          std::from_chars(begin->second.data(), begin->second.data() + begin->second.size(), at);
        if (at < 0) throw DataError(text(file->path(), " does not say where ", tensor.name, " begins"));
        pieces_[tensor.name].push_back({file.get(), &tensor, at});
      }
    }
    for (auto& [name, pieces] : pieces_)
      std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  }

  bool has(const std::string& name) const { return pieces_.contains(name); }

  /// Throws DataError unless the pieces of `name` are all of its `count` elements, once each, and T holds them.
  template <class T>
  void check(const std::string& name, std::int64_t count) const {
    std::int64_t at = 0;
    if (const auto found = pieces_.find(name); found != pieces_.end())
      for (auto& piece : found->second) {
        if (piece.begin != at)
          throw DataError(text(piece.file->path(), ": ", name, " begins at element ", piece.begin, ", expected ", at));
        if (!holds_exactly<T>(piece.tensor->type.type))
          throw DataError(text(piece.file->path(), ": ", name, " is ", piece.tensor->type.name, ", which ",
                               zeropp::name_of(dtype_of<T>), " does not hold exactly"));
        at += piece.tensor->count();
      }
    if (at != count)
      throw DataError(text("the optimizer files in ", folder_, " hold ", at, " of ", count, " elements of ", name));
  }

  /// Elements `range` of `name`, which check() has accepted.
  template <class T>
  void read(const std::string& name, Range range, std::span<T> out) {
    const auto found = pieces_.find(name);
    if (found == pieces_.end()) return;
    for (auto& piece : found->second) {
      const auto part = range.clipped({piece.begin, piece.begin + piece.tensor->count()});
      if (part.size())
        piece.file->read(
            *piece.tensor, part.begin - piece.begin,
            out.subspan(static_cast<std::size_t>(part.begin - range.begin), static_cast<std::size_t>(part.size())));
    }
  }

 private:
  struct Piece {
    Safetensors* file;
    const StoredTensor* tensor;
    std::int64_t begin;
  };
  std::string folder_;
  std::vector<std::unique_ptr<Safetensors>> files_;
  std::map<std::string, std::vector<Piece>> pieces_;
};

/// Fills the moments over update() from the files.
template <class Model, class Adam>
void read_moments(Model& model, Adam& adam, OptimizerFiles& files) {
  using Moment = typename Adam::Moment;
  std::size_t index = 0;
  for (auto& unit : model.units()) {
    for (auto* p : unit.parameters()) {
      const auto mine = unit.update().clipped({p->offset, p->offset + p->size()});
      const auto fill = [&](std::string_view kind, std::span<Moment> moments) {
        files.read(p->name + std::string(kind), {mine.begin - p->offset, mine.end - p->offset},
                   moments.subspan(static_cast<std::size_t>(mine.begin - unit.update().begin),
                                   static_cast<std::size_t>(mine.size())));
      };
      if (mine.size() == 0) continue;
      fill(detail::first_moment, adam.first(index));
      fill(detail::second_moment, adam.second(index));
    }
    ++index;
  }
}

}  // namespace zeropp
