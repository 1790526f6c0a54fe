// SPDX-License-Identifier: Apache-2.0
// Weights of a model to and from safetensors files: whole tensors under the names of a Naming, whatever the mesh.
// Written tensor by tensor, so that no rank holds more than a unit and a tensor; read by each rank in the ranges that
// it keeps.
//
//   load_weights("gpt2/model.safetensors", model, {.naming = Naming::gpt2(), .vocabulary = 50257});
//   save_weights("export/model.safetensors", model, {.naming = Naming::gpt2(), .vocabulary = 50257});
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zeropp/layers/precision.hpp>
#include <zeropp/train/checkpoint/store.hpp>
#include <zeropp/train/checkpoint/together.hpp>
#include <zeropp/train/checkpoint/weight_files.hpp>
#include <zeropp/train/checkpoint/whole_tensors.hpp>

namespace zeropp {

struct WeightsOptions {
  Naming naming = {};
  std::int64_t vocabulary = 0;  ///< tokens in the file where the model pads its rows; 0: no padding
  FileSystem* files = &FileSystem::system();
};

namespace detail {

template <class Model>
using weight_of = typename Model::Precision::Weight;
/// The type in which a weight is read, before it is rounded, or split into a narrow weight and the rest of its master.
template <class Model>
using master_of = compute_t<weight_of<Model>>;

inline void check_vocabulary(const Naming& naming, std::int64_t vocabulary) {
  if (vocabulary < 0 || (vocabulary && naming.by_vocabulary.empty()))
    throw ConfigError(text("a vocabulary of ", vocabulary, " for the naming ", naming.name,
                           ", which does not say which parameters have a row for each token"));
}

/// The parameters of the whole model, in its order.
template <class Model>
std::vector<TensorSpec> weight_specs(Model& model, const Naming& naming, std::int64_t vocabulary) {
  check_vocabulary(naming, vocabulary);
  std::vector<TensorSpec> specs;
  for (auto& p : model.model_parameters())
    specs.push_back({p.name, dtype_of<weight_of<Model>>, naming.stored_shape(p.name, p.shape, vocabulary)});
  return specs;
}

template <class T>
void append_transposed(SafetensorsWriter& writer, std::span<const T> matrix, std::int64_t rows, std::int64_t columns) {
  std::vector<T> column(static_cast<std::size_t>(rows));
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = 0; r < rows; ++r)
      column[static_cast<std::size_t>(r)] = matrix[static_cast<std::size_t>(r * columns + c)];
    writer.append(std::span<const T>{column});
  }
}

/// Gathers unit by unit over the data ranks, and tensor by tensor over the other axes, on rank 0; if that has a writer
/// it writes. A collective, also where `attempt` has failed.
template <class Model>
void write_weights(Model& model, const Naming& naming, std::int64_t vocabulary,
                   std::optional<SafetensorsWriter>& writer, Attempt& attempt) {
  for_each_whole_tensor(model, [&](const ModelParameter& p, std::span<const weight_of<Model>> values) {
    attempt([&] {
      if (!writer) return;
      auto shape = p.shape;
      if (vocabulary && naming.has_vocabulary_rows(p.name)) shape[0] = vocabulary;
      values = values.first(static_cast<std::size_t>(element_count(shape)));
      if (naming.transposes(p.name, shape))
        append_transposed(*writer, values, shape[0], shape[1]);
      else
        writer->append(values);
    });
  });
}

/// Fills the weights (and what is kept of masters) over updated(); publish_weights() sends them on. The weights that
/// have been read go through complete(Parameter, Range, source, std::span<Master>), which may make masters of it.
template <class Model, class Complete>
void read_weights(Model& model, const WeightFiles::Match& match, Complete&& complete) {
  using Weight = weight_of<Model>;
  using Master = master_of<Model>;
  std::vector<Master> master;
  std::vector<Weight> weight;
  std::vector<kept_t<Weight>> kept;
  for (auto& unit : model.units()) {
    const auto update = unit.updated(), held = unit.held();
    auto weights = unit.weights();
    auto masters = unit.masters();
    for (auto* p : unit.parameters()) {
      const auto mine = update.clipped({p->offset, p->offset + p->size()});
      const auto& source = match.of(p->name);
      const auto part = slice_of(*p);
      // A transposed tensor is read in one go, others in pieces.
      const auto piece = source.transposed ? std::max<std::int64_t>(mine.size(), 1) : 1 << 18;
      for (auto at = mine.begin; at < mine.end; at += piece) {
        const Range range{at - p->offset, std::min(at + piece, mine.end) - p->offset};
        const auto n = static_cast<std::size_t>(range.size());
        master.resize(n);
        source.read(part, range, std::span{master});
        complete(*p, range, source, std::span{master});
        fill_from_host(model.device(), weights.subspan(static_cast<std::size_t>(at - held.begin), n), weight,
                       [&](auto out) {
                         for (std::size_t i = 0; i < n; ++i)
                           if constexpr (Model::Precision::keeps_master)
                             out[i] = master_of_t<Weight>::from(master[i]).weight;
                           else
                             out[i] = static_cast<Weight>(master[i]);
                       });
        if constexpr (Model::Precision::keeps_master)
          fill_from_host(model.device(), masters.subspan(static_cast<std::size_t>(at - update.begin), n), kept,
                         [&](auto out) {
                           for (std::size_t i = 0; i < n; ++i) {
                             const auto [narrow, beside] = master_of_t<Weight>::from(master[i]);
                             out[i] = beside;
                           }
                         });
      }
    }
  }
}

/// Throws DataError for a value that the model's weights cannot hold: one that overflows, or is no number.
template <class Weight, class Master>
void expect_fits(const TensorSource& source, std::span<const Master> masters) {
  for (auto master : masters)
    if (!std::isfinite(static_cast<Master>(static_cast<Weight>(master))))
      throw DataError(text("tensor ", source.tensor->name, " in ", source.file->path(), " holds the value ",
                           static_cast<double>(master), ", which ", name_of(dtype_of<Weight>), " does not hold",
                           std::isfinite(master) ? "; train in bf16 or fp32" : "; these weights cannot be trained"));
}

}  // namespace detail

/// Fills the model's weights from a safetensors file, a folder with model.safetensors, or one with an index; optimizer
/// states stay as they are. Weights of 16 bits without masters are rounded to nearest. Nothing is changed unless all
/// names and shapes fit; a value that the model's precision does not hold is found while weights are read. A
/// collective. Throws DataError.
template <class Model>
void load_weights(const std::string& path, Model& model, const WeightsOptions& options = {}) {
  std::optional<WeightFiles> files;
  WeightFiles::Match match;
  const auto& world = model.comms().world;
  together(world, [&] {
    detail::check_vocabulary(options.naming, options.vocabulary);
    files.emplace(*options.files, path);
    match =
        files->template match<detail::master_of<Model>>(model.model_parameters(), options.naming, options.vocabulary);
  });
  together(world, [&] {
    detail::read_weights(model, match, [](const Parameter&, Range, const TensorSource& source, auto master) {
      using Master = detail::master_of<Model>;
      detail::expect_fits<detail::weight_of<Model>>(source, std::span<const Master>{master});
    });
  });
  model.publish_weights();
}

/// Writes the model's weights into one safetensors file, which appears when it is complete: rank 0 writes. bf16 and f16
/// weights are written as they are, without their masters. A collective. Throws DataError.
template <class Model>
void save_weights(const std::string& path, Model& model, const WeightsOptions& options = {}) {
  const auto slash = path.rfind('/');
  const auto folder = slash == std::string::npos ? std::string(".") : slash == 0 ? "/" : path.substr(0, slash);
  const auto name = path.substr(slash == std::string::npos ? 0 : slash + 1);
  auto& files = *options.files;
  const auto temporary = CheckpointStore::temporary(name);
  std::optional<SafetensorsWriter> writer;
  Attempt attempt;
  attempt([&] {
    const auto specs = detail::weight_specs(model, options.naming, options.vocabulary);
    if (model.comms().world.rank() != 0) return;
    files.make_folders(folder);
    files.remove(folder + "/" + temporary);
    writer.emplace(files, folder, temporary, specs, std::map<std::string, std::string>{{"format", "pt"}});
  });
  detail::write_weights(model, options.naming, options.vocabulary, writer, attempt);
  attempt([&] {
    if (!writer) return;
    writer->finish();
    files.rename(folder + "/" + temporary, path);
    files.sync_folder(folder);
  });
  attempt.agree(model.comms().world);
}

}  // namespace zeropp
