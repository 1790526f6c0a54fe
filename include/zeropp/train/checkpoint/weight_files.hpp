// SPDX-License-Identifier: Apache-2.0
// The weights of a model as they lie in safetensors files: one file, or several and an index that names them. Every
// tensor is compared with the model before one is read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/parallel/sharding/model_parameters.hpp>
#include <zeropp/train/checkpoint/find_weights.hpp>
#include <zeropp/train/checkpoint/naming.hpp>
#include <zeropp/train/checkpoint/read_ahead.hpp>

namespace zeropp {

/// Where the values of a parameter come from.
struct TensorSource {
  Safetensors* file = nullptr;
  const StoredTensor* tensor = nullptr;
  bool transposed = false;  ///< the file holds [in, out]

  /// Elements `mine` of a part of the parameter, in its own order; zeros behind the end of what the file holds.
  template <class T>
  void read(const Slice& part, Range mine, std::span<T> out) const {
    if (transposed) return read_transposed(part, mine, out);
    ReadAhead<T> stored(*file, *tensor);
    part.for_each_run(mine, [&](std::int64_t whole, std::int64_t here, std::int64_t count) {
      const auto to = out.subspan(static_cast<std::size_t>(here - mine.begin), static_cast<std::size_t>(count));
      const auto there = std::clamp<std::int64_t>(tensor->count() - whole, 0, count);
      if (there) stored.read(whole, to.first(static_cast<std::size_t>(there)));
      std::fill(to.begin() + there, to.end(), T{});
    });
  }

 private:
  /// Reads the file once, some of its rows (columns of the parameter) at a time.
  template <class T>
  void read_transposed(const Slice& part, Range mine, std::span<T> out) const {
    const auto columns = tensor->shape[0], rows = tensor->shape[1];
    const auto most = std::max<std::int64_t>(1, (1 << 20) / std::max<std::int64_t>(1, rows));
    std::fill(out.begin(), out.end(), T{});
    std::vector<T> band;
    for (Range now{0, 0}; now.begin < columns; now.begin = now.end) {
      now.end = std::min(columns, now.begin + most);
      band.resize(static_cast<std::size_t>(now.size() * rows));
      bool read = false;
      part.for_each_run(mine, [&](std::int64_t whole, std::int64_t here, std::int64_t count) {
        for (auto row = whole / columns; row * columns < whole + count && row < rows; ++row) {
          const auto first = row * columns;
          const auto wanted = now.clipped({whole - first, whole + count - first});
          if (wanted.size() > 0 && !std::exchange(read, true)) file->read(*tensor, now.begin * rows, std::span{band});
          for (auto c = wanted.begin; c < wanted.end; ++c)
            out[static_cast<std::size_t>(first + c - whole + here - mine.begin)] =
                band[static_cast<std::size_t>((c - now.begin) * rows + row)];
        }
      });
    }
  }
};

class WeightFiles {
 public:
  /// One file.
  WeightFiles(FileSystem& files, const std::string& path, File::Links links) : path_(path) {
    add(files, path, links, nullptr);
  }
  /// A file, an index, or a folder: see find_weights. Links are followed, but names in an index stay in their folder,
  /// or in the cache of hubs that holds it. Throws DataError.
  WeightFiles(FileSystem& files, const std::string& path) : path_(path) {
    const auto found = find_weights(files, path);
    if (found.index)
      add_indexed(files, found);
    else
      add(files, found.file, File::Links::follow, nullptr);
  }

  const std::string& path() const { return path_; }

  struct Match {
    std::map<std::string, TensorSource, std::less<>> sources;
    const TensorSource& of(const std::string& parameter) const { return sources.find(parameter)->second; }
  };
  /// Finds the tensor of each parameter of the whole model. Throws DataError with the first parameter that is missing
  /// or of another shape, or the first tensor that the model does not have. T is the type that values will be read as.
  template <class T>
  Match match(const std::vector<ModelParameter>& parameters, const Naming& naming, std::int64_t vocabulary) {
    auto rest = by_parameter(naming);
    Match match;
    for (auto& p : parameters) {
      const auto found = rest.find(p.name);
      if (found == rest.end())
        throw DataError(text(path_, " has no tensor for the parameter ", p.name, " of shape ", shape_text(p.shape),
                             ": these are the weights of another model"));
      auto source = found->second;
      const auto wanted = naming.stored_shape(p.name, p.shape, vocabulary);
      if (source.tensor->shape != wanted)
        throw DataError(text("tensor ", source.tensor->name, " in ", source.file->path(), " has the shape ",
                             shape_text(source.tensor->shape), ", the model needs ", shape_text(wanted),
                             ": these are the weights of another model"));
      if (!holds_exactly<T>(source.tensor->type.type))
        throw DataError(text("tensor ", source.tensor->name, " in ", source.file->path(), " is ",
                             source.tensor->type.name, ", which ", zeropp::name_of(dtype_of<T>),
                             " does not hold exactly; convert the file"));
      source.transposed = naming.transposes(p.name, p.shape);
      match.sources.emplace(p.name, source);
      rest.erase(found);
    }
    for (auto& [name, source] : rest)
      if (!naming.skips(name) && !is_copy<T>(name, source, naming, match))
        throw DataError(text("the model has no parameter for tensor ", source.tensor->name, " of shape ",
                             shape_text(source.tensor->shape), " in ", source.file->path(),
                             ": these are the weights of another model"));
    return match;
  }

 private:
  void add(FileSystem& files, const std::string& path, File::Links links, const std::set<std::string>* wanted) {
    auto& file = files_.emplace_back(std::make_unique<Safetensors>(files, path, links));
    for (auto& tensor : file->tensors())
      if (!wanted || wanted->contains(tensor.name)) tensors_.push_back({file.get(), &tensor});
    if (wanted)
      for (auto& name : *wanted)
        if (!file->find(name)) throw DataError(text("the index says that ", path, " holds ", name, "; it does not"));
  }
  void add_indexed(FileSystem& files, const WeightsFound& found) {
    const auto& index = found.file;
    const auto json =
        parse_strict_json(read_text(files, index, Safetensors::longest_header, File::Links::follow), index);
    const auto& map = json_member(json, "weight_map", index);
    if (!map.is_object()) throw DataError(text(index, ": weight_map must be an object"));
    std::map<std::string, std::set<std::string>> tensors_of;
    for (auto& [tensor, name] : map.items()) {
      if (!name.is_string()) throw DataError(text(index, ": the file of ", tensor, " must be a string"));
      tensors_of[name.get<std::string>()].insert(tensor);
    }
    for (auto& [name, tensors] : tensors_of) {
      if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos)
        throw DataError(
            text(index, " names the file ", nlohmann::json(name).dump(), "; an index may only name files beside it"));
      const auto path = found.folder + "/" + name;
      expect_inside(files, found.folder, path);
      add(files, path, File::Links::follow, &tensors);
    }
  }

  std::map<std::string, TensorSource> by_parameter(const Naming& naming) const {
    std::map<std::string, TensorSource> found;
    for (auto& source : tensors_) {
      const auto name = naming.parameter_of(source.tensor->name);
      if (const auto [other, added] = found.emplace(name, source); !added)
        throw DataError(
            text(path_, " holds ", name, " twice: as ", other->second.tensor->name, " and as ", source.tensor->name));
    }
    return found;
  }

  /// A second copy of a tied tensor; refused if its values differ, for the model would not be the one of the file.
  template <class T>
  bool is_copy(const std::string& name, const TensorSource& copy, const Naming& naming, const Match& match) const {
    for (auto& [tied, owner] : naming.tied) {
      if (name != tied || !match.sources.contains(owner)) continue;
      const auto& original = match.of(owner);
      bool equal = copy.tensor->shape == original.tensor->shape && holds_exactly<T>(copy.tensor->type.type);
      std::vector<T> a(1 << 16), b(1 << 16);
      for (std::int64_t at = 0; equal && at < copy.tensor->count(); at += static_cast<std::int64_t>(a.size())) {
        const auto n = static_cast<std::size_t>(std::min<std::int64_t>(copy.tensor->count() - at, 1 << 16));
        copy.file->read(*copy.tensor, at, std::span{a}.first(n));
        original.file->read(*original.tensor, at, std::span{b}.first(n));
        equal = std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin());
      }
      if (!equal)
        throw DataError(text(copy.file->path(), ": ", copy.tensor->name, " differs from ", original.tensor->name,
                             ", which the model ties to it; use a model with an untied head"));
      return true;
    }
    return false;
  }

  std::string path_;
  std::vector<std::unique_ptr<Safetensors>> files_;
  std::vector<TensorSource> tensors_;
};

}  // namespace zeropp
