// SPDX-License-Identifier: Apache-2.0
// Loads one checkpoint folder into a model and its optimizer: everything is verified before anything of them changes.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/train/checkpoint/optimizer_files.hpp>
#include <zeropp/train/checkpoint/weights.hpp>
#include <zeropp/train/loss_scale.hpp>

namespace zeropp {

/// A small file that a program keeps in its checkpoints: the tokenizer, the configuration that other libraries read.
struct SmallFile {
  static constexpr std::size_t most = 256 << 20;  ///< bytes
  std::string name, content;
};

/// The place in a run, beside weights and optimizer states.
struct CheckpointState {
  std::int64_t step = 0;  ///< names the folder
  std::uint64_t seed = 0;
  std::int64_t cursor = 0;                        ///< place in the data, in the caller's unit
  std::string config = {};                        ///< JSON: the settings of the run, for training.json; empty: {}
  std::string extra = {};                         ///< JSON: what else the caller needs to go on; empty: {}
  std::optional<LossScaleState> loss_scale = {};  ///< LossScaler::state()
  std::vector<SmallFile> files = {};              ///< of at most SmallFile::most bytes, kept as they are

  /// The content of the file of that name; null if there is none.
  const std::string* file(std::string_view name) const {
    for (auto& small : files)
      if (small.name == name) return &small.content;
    return nullptr;
  }
};

namespace detail {

/// The small files of a checkpoint.
struct CheckpointTexts {
  std::string manifest, state, config;
  std::vector<SmallFile> files;

  /// Reads them and compares them with the manifest.
  static CheckpointTexts read(FileSystem& files, const std::string& folder) {
    CheckpointTexts texts;
    const auto path = folder + "/" + Manifest::file_name;
    texts.manifest = read_text(files, path);
    const auto manifest = Manifest::from_text(texts.manifest, path);
    const auto small = [&](const std::string& name) {
      verify_file(files, folder, manifest.file(name));
      return read_text(files, folder + "/" + name);
    };
    texts.state = small("state.json");
    texts.config = small(manifest.settings_file());
    for (auto i = manifest.own_files(); i < manifest.files.size(); ++i)
      texts.files.push_back({manifest.files[i].name, small(manifest.files[i].name)});
    return texts;
  }
  /// Rank 0 sends its own to all. A collective.
  void broadcast(const Comm& comm) {
    for (auto* part : {&manifest, &state, &config}) *part = broadcast_text(comm, std::move(*part));
    const auto parsed = Manifest::from_text(manifest, Manifest::file_name);
    files.resize(parsed.files.size() - parsed.own_files());
    for (std::size_t i = 0; i < files.size(); ++i)
      files[i] = {parsed.files[parsed.own_files() + i].name, broadcast_text(comm, std::move(files[i].content))};
  }
};

template <class Model, class Optim>
std::string state_text(Model& model, Optim& optimizer, const CheckpointState& state) {
  auto json = nlohmann::json{
      {"step", state.step},
      {"seed", state.seed},
      {"cursor", state.cursor},
      {"model_step", model.step()},
      {"optimizer", optimizer.name()},
      {"optimizer_steps", optimizer.steps()},
      {"extra", state.extra.empty() ? nlohmann::json::object() : parse_strict_json(state.extra, "extra")}};
  if (const auto& scale = state.loss_scale)
    json["loss_scale"] = {
        {"scale", scale->scale}, {"good_steps", scale->good_steps}, {"hysteresis", scale->hysteresis}};
  return json.dump(1) + "\n";
}

template <class Model, class Optim>
CheckpointState set_state(Model& model, Optim& optimizer, const CheckpointTexts& texts, const std::string& path) {
  const auto json = parse_strict_json(texts.state, path);
  model.set_step(json_count(json, "model_step", path));
  // Before there were others, the optimizer was Adam, unnamed.
  optimizer.set_steps(json_count(json, json.contains("optimizer_steps") ? "optimizer_steps" : "adam_steps", path));
  CheckpointState state{json_count(json, "step", path), json_member(json, "seed", path).template get<std::uint64_t>(),
                        json_member(json, "cursor", path).template get<std::int64_t>(), texts.config,
                        json_member(json, "extra", path).dump()};
  state.files = texts.files;
  if (json.contains("loss_scale")) {
    const auto& scale = json["loss_scale"];
    state.loss_scale = {json_member(scale, "scale", path).template get<float>(), json_count(scale, "good_steps", path),
                        static_cast<int>(json_count(scale, "hysteresis", path))};
  }
  return state;
}

/// Throws DataError with the first parameter whose name or shape differs.
template <class Model>
void check_model(Model& model, const Manifest& manifest, const std::string& folder) {
  std::size_t i = 0;
  const auto refuse = [&](const std::string& what) {
    throw DataError(text(folder, " is a checkpoint of another model: ", what, ". Start with the settings of that run"));
  };
  const auto described = [](const auto& p) { return text(p.name, " of shape ", shape_text(p.shape)); };
  for (auto& p : model.model_parameters()) {
    if (i == manifest.parameters.size()) refuse(text("it ends before the model's ", described(p)));
    const auto& saved = manifest.parameters[i++];
    if (saved.name != p.name || saved.shape != p.shape)
      refuse(text("it has ", described(saved), " where the model has ", described(p)));
  }
  if (i != manifest.parameters.size()) refuse(text("the model ends before its ", described(manifest.parameters[i])));
}

/// Throws DataError where the states are another optimizer's: that is no damage, so no older checkpoint is tried.
inline void expect_optimizer(std::string_view name, const std::string& state, const std::string& folder) {
  const auto path = folder + "/state.json";
  const auto json = parse_strict_json(state, path);
  const auto saved = json.contains("optimizer") ? json_string(json, "optimizer", path) : std::string("adam");
  if (saved != name)
    throw DataError(text(folder, " holds the states of the optimizer ", saved, ", which ", name,
                         " cannot go on from: resume it with ", saved, ", or begin anew from its weights"));
}

/// The master of a bf16 weight that was read as a float.
inline float joined(float weight, std::int16_t remainder) {
  SplitMaster split{.weight = {}, .remainder = remainder};
  split.weight.bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(weight) >> 16);
  return split.master();
}

/// Returns what is wrong with the files, if anything is; the model is then as it was. Throws if the checkpoint is one
/// of another model, or if a file changed between the check and the read. A collective.
template <class Model, class Optim>
std::optional<Failure> load_checkpoint(const std::string& folder, FileSystem& files, const Naming& own, Model& model,
                                       Optim& optimizer, CheckpointState& state) {
  const auto& comm = model.comms().world;
  const auto parameters = model.model_parameters();
  CheckpointTexts texts;
  Attempt reading;
  reading([&] {
    if (comm.rank() == 0) texts = CheckpointTexts::read(files, folder);
  });
  if (auto failure = reading.over(comm)) return failure;
  texts.broadcast(comm);
  const auto manifest = Manifest::from_text(texts.manifest, folder + "/" + Manifest::file_name);
  check_model(model, manifest, folder);
  expect_optimizer(optimizer.name(), texts.state, folder);
  const auto naming = manifest.naming == own.name ? own : Naming::called(manifest.naming);

  std::optional<WeightFiles> weights;
  std::optional<OptimizerFiles> states;
  bool halves = false, wholes = false;
  WeightFiles::Match match;
  Attempt checking;
  checking([&] {
    for (std::size_t i = 0; i < manifest.files.size(); ++i)  // each rank reads its part of the files
      if (static_cast<int>(i % static_cast<std::size_t>(comm.size())) == comm.rank())
        verify_file(files, folder, manifest.files[i]);
    weights.emplace(files, folder + "/model.safetensors", File::Links::refuse);
    match = weights->template match<master_of<Model>>(parameters, naming, 0);
    states.emplace(files, folder, manifest.ranks, parameters);
    halves = states->have(low_half), wholes = states->have(whole_master);
    for (auto& p : parameters) {
      const auto stored = match.of(p.name).tensor->type.type;
      if (rounds_stochastically<typename Model::Precision> && (halves || wholes || stored != DType::bf16))
        throw DataError(text(folder, " holds fp32 masters (", manifest.precision, "), which ", Model::Precision::name,
                             " does not keep exactly: resume it as it was, or begin anew from its weights"));
      for (auto slot : optimizer.slots())
        states->template check<typename Optim::State>(slot_tensor(p.name, slot), p.shape);
      if (stored == DType::bf16 && halves)
        states->template check<std::int16_t>(p.name + std::string(low_half), p.shape);
      if (stored == DType::f16 && wholes) states->template check<float>(p.name + std::string(whole_master), p.shape);
    }
  });
  if (auto failure = checking.over(comm)) return failure;

  Attempt loading;
  loading([&] {
    try {
      std::vector<std::int16_t> low;
      read_weights(model, match, [&](const Parameter& p, Range range, const TensorSource& source, auto master) {
        const auto stored = source.tensor->type.type;
        if (stored == DType::f16 && wholes)
          states->read(p.name + std::string(whole_master), slice_of(p), range, master);
        if constexpr (std::is_same_v<weight_of<Model>, f16>)  // of masters in a wider precision
          if (stored != DType::f16) expect_fits<f16>(source, std::span<const master_of<Model>>{master});
        if (stored != DType::bf16 || !halves) return;
        low.resize(master.size());
        states->read(p.name + std::string(low_half), slice_of(p), range, std::span{low});
        for (std::size_t i = 0; i < low.size(); ++i) master[i] = joined(static_cast<float>(master[i]), low[i]);
      });
      read_slots(model, optimizer, *states);
    } catch (const Error& error) {
      throw DataError(text(error.what(), ". The model is half loaded: start again"));
    }
  });
  loading.agree(comm);
  model.publish_weights();
  state = set_state(model, optimizer, texts, folder + "/state.json");
  return {};
}

}  // namespace detail

}  // namespace zeropp
