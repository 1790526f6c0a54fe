// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a training run: weights, optimizer states and the place in the run, each complete or not there.
//
//   Checkpoints store{world.comm, "out/checkpoints", {.keep = 3, .warn = print}};
//   if (auto found = store.resume(model, adam)) first = found->step;
//   ...
//   store.save(model, adam, {.step = step, .seed = seed, .config = settings_json});
//
// A model resumed on the mesh that saved it goes on with the same bits; on another mesh it has the same weights and
// moments. docs/checkpoint.md describes the files.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/parallel/sharding/sharded_state.hpp>
#include <zeropp/train/checkpoint/load_checkpoint.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>

namespace zeropp {

namespace detail {
/// The subject of checkpoints: one type, so that they compile once for all models and optimizers of a precision and
/// device.
template <Precision P, Device D>
ShardedState<P, D>& state_of(ShardedState<P, D>& model) {
  return model;
}
template <class Adam>
auto& optimizer_of(Adam& adam) {
  if constexpr (std::is_base_of_v<Optimizer<typename Adam::State>, Adam>)
    return static_cast<Optimizer<typename Adam::State>&>(adam);
  else
    return adam;
}
}  // namespace detail

struct CheckpointOptions {
  std::int64_t keep = 3;  ///< newest checkpoints that stay; 0: all
  Naming naming = {};     ///< of the tensors in model.safetensors
  /// Called on rank 0 with a sentence where something is wrong that does not end the run.
  std::function<void(const std::string&)> warn = {};
  FileSystem* files = &FileSystem::system();
};

class Checkpoints {
 public:
  /// Makes the folder and locks it against other runs while this object lives. A collective. Throws DataError.
  Checkpoints(Comm comm, const std::string& folder, CheckpointOptions options = {})
      : comm_(std::move(comm)), options_(std::move(options)), store_(*options_.files, folder) {
    if (options_.keep < 0) throw ConfigError(text("keep counts checkpoints, 0 keeps all; got ", options_.keep));
    together(comm_, [&] {
      if (comm_.rank() == 0) store_.lock();
    });
  }

  /// Saves, and returns the path. The checkpoint appears when all of it is on the disk; then older ones than the
  /// `keep` newest are removed. If any rank fails all throw its error, and the checkpoints before stay. A collective.
  template <class Model, class Adam>
  std::string save(Model& model, Adam& adam, const CheckpointState& state) {
    const auto name = CheckpointStore::name_of(state.step);
    try {
      current_ = write(detail::state_of(model), detail::optimizer_of(adam), state);
    } catch (const CommError&) {
      throw;  // the other ranks are gone; the next save removes the temporary folder
    } catch (...) {
      if (comm_.rank() == 0) quietly([&] { store_.remove_temporary(); });
      throw;
    }
    if (comm_.rank() == 0) {
      try {
        store_.prune(name, options_.keep);
      } catch (const Error& error) {
        warn(text(name, " is saved, but older checkpoints could not be removed: ", error.what()));
      }
    }
    return store_.path(name);
  }

  struct Resumed : CheckpointState {
    std::string path;                  ///< of the checkpoint
    std::vector<std::string> refused;  ///< sentences on what was passed over, and why
  };

  /// Loads the newest checkpoint that is whole; nothing if there is none at all. Damaged ones are passed over, each
  /// with a sentence in `refused` and to `warn`. With a path (or a name below the store's folder, step-00000100) loads
  /// that one. Throws DataError if it, or all, are damaged, or if one is of another model; the model has then not
  /// been changed. A collective.
  template <class Model, class Adam>
  std::optional<Resumed> resume(Model& model, Adam& adam, const std::string& path = {}) {
    return resume_state(detail::state_of(model), detail::optimizer_of(adam), path);
  }

 private:
  template <class Model, class Adam>
  std::optional<Resumed> resume_state(Model& model, Adam& adam, const std::string& path) {
    if (!path.empty()) return load(model, adam, path);
    std::vector<std::string> names, refused, damaged;
    together(comm_, [&] {
      if (comm_.rank() != 0) return;
      store_.recover();
      names = store_.candidates(refused);
    });
    names = lines(broadcast_text(comm_, joined(names)));
    refused = lines(broadcast_text(comm_, joined(refused)));
    for (auto& name : names) {
      Resumed resumed;
      if (auto failure = load_into(resumed, store_.path(name), model, adam)) {
        damaged.push_back(text(name, " refused: ", failure->sentence));
        continue;
      }
      for (auto& sentence : damaged) refused.push_back(text(sentence, "; using ", name));
      for (auto& sentence : refused) warn(sentence);
      resumed.refused = std::move(refused);
      came_from(name);
      return resumed;
    }
    if (names.empty()) return {};
    std::string all;
    for (auto& sentence : damaged) all += text(all.empty() ? "" : "; ", sentence);
    throw DataError(text("no checkpoint in ", store_.root(), " can be used: ", all,
                         ". Restore one of them, or start in another folder"));
  }

  /// Returns the identity of what it wrote.
  template <class Model, class Adam>
  std::string write(Model& model, Adam& adam, const CheckpointState& state) {
    check_ranks(model);
    const auto folder = store_.path(CheckpointStore::temporary(CheckpointStore::name_of(state.step)));
    const bool first = comm_.rank() == 0;
    auto& files = store_.files();
    together(comm_, [&] {
      if (state.step < 0) throw ConfigError(text("steps count from 0, got ", state.step));
      if (!state.config.empty()) parse_strict_json(state.config, "the config of the checkpoint");
      for (auto& file : state.files)
        if (!Manifest::allows(file.name) || state.file(file.name) != &file.content ||
            file.content.size() > SmallFile::most)
          throw ConfigError(text("a checkpoint can not keep a file of ", file.content.size(), " bytes called \"",
                                 file.name, "\"; each has a plain name of its own, none of the library's, and at most ",
                                 SmallFile::most, " bytes"));
      if (first) store_.begin(state.step);
    });
    Attempt attempt;
    std::optional<SafetensorsWriter> writer;
    FileRecord weights, optimizer;
    std::string identity;
    attempt([&] {
      const auto specs = detail::weight_specs(model, options_.naming, 0);
      if (first)
        writer.emplace(files, folder, "model.safetensors", specs,
                       std::map<std::string, std::string>{{"format", "pt"}, {"naming", options_.naming.name}});
    });
    detail::write_weights(model, options_.naming, 0, writer, attempt);
    attempt([&] {
      if (writer) weights = writer->finish();
      optimizer = write_optimizer_file(files, folder, model, adam);
    });
    attempt.agree(comm_);
    const auto records = gather_texts(comm_, to_json(optimizer).dump());
    together(comm_, [&] {
      if (!first) return;
      auto manifest = manifest_of(model, state.step);
      manifest.files = {write_text(folder, manifest.settings_file(), state.config.empty() ? "{}\n" : state.config),
                        write_text(folder, "state.json", detail::state_text(model, adam, state)), weights};
      for (auto& record : records)
        manifest.files.push_back(file_record_from(parse_strict_json(record, "a rank's record"), "a rank's record"));
      for (auto& file : state.files) manifest.files.push_back(write_text(folder, file.name, file.content));
      const auto content = manifest.to_text();
      write_text(folder, Manifest::file_name, content);
      store_.commit(state.step);
      identity = CheckpointStore::identity(CheckpointStore::name_of(state.step), content);
    });
    return identity;
  }

  template <class Model>
  Manifest manifest_of(Model& model, std::int64_t step) const {
    Manifest manifest;
    manifest.step = step;
    manifest.follows = current_;
    manifest.ranks = comm_.size();
    manifest.tensor = model.comms().tensor.size();
    manifest.pipeline = model.comms().pipeline.size();
    manifest.stage = static_cast<std::int64_t>(model.stage());
    manifest.precision = Model::Precision::name;
    manifest.naming = options_.naming.name;
    for (auto& p : model.model_parameters()) manifest.parameters.push_back({p.name, p.shape});
    return manifest;
  }
  FileRecord write_text(const std::string& folder, const std::string& name, const std::string& content) const {
    CheckpointStore::write_file(store_.files(), folder + "/" + name, content);
    return {name, static_cast<std::int64_t>(content.size()), Checksum::of(content)};
  }

  template <class Model, class Adam>
  Resumed load(Model& model, Adam& adam, std::string path) {
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    const bool inside = CheckpointStore::step_of(path).has_value();
    Resumed resumed;
    if (auto failure = load_into(resumed, inside ? store_.path(path) : path, model, adam)) failure->raise(comm_);
    const auto at = path.rfind(store_.root() + "/", 0) == 0 ? store_.root().size() + 1 : 0;
    came_from(path.substr(at));
    return resumed;
  }
  template <class Model, class Adam>
  std::optional<Failure> load_into(Resumed& resumed, const std::string& path, Model& model, Adam& adam) {
    check_ranks(model);
    resumed.path = path;
    return detail::load_checkpoint(path, store_.files(), options_.naming, model, adam, resumed);
  }

  template <class Model>
  void check_ranks(const Model& model) const {
    if (model.comms().world.size() != comm_.size())
      throw ConfigError(text("these checkpoints are kept by ", comm_.size(), " ranks, but ", model.comms().world.size(),
                             " hold the model; give Checkpoints the communicator of all of them"));
  }

  /// The next checkpoint follows this one, if it is one of the store.
  void came_from(const std::string& name) {
    current_ = comm_.rank() == 0 && CheckpointStore::step_of(name) ? store_.identity(name) : std::string();
  }

  static std::string joined(const std::vector<std::string>& texts) {
    std::string all;
    for (auto& one : texts) all += one + "\n";
    return all;
  }
  static std::vector<std::string> lines(const std::string& all) {
    std::vector<std::string> out;
    for (std::size_t at = 0, end = 0; (end = all.find('\n', at)) != std::string::npos; at = end + 1)
      out.push_back(all.substr(at, end - at));
    return out;
  }
  template <class Work>
  static void quietly(Work&& work) {
    try {
      work();
    } catch (const Error&) {  // what is reported is the error before it
    }
  }
  void warn(const std::string& sentence) const {
    if (comm_.rank() == 0 && options_.warn) options_.warn(sentence);
  }

  Comm comm_;
  CheckpointOptions options_;
  CheckpointStore store_;
  std::string current_;  ///< on rank 0: what the next checkpoint follows
};

}  // namespace zeropp
