// SPDX-License-Identifier: Apache-2.0
#include "record.hpp"

#include <algorithm>
#include <charconv>
#include <map>

#include <zeropp/app/data/tiktoken.hpp>
#include <zeropp/app/hub/export.hpp>
#include <zeropp/app/hub/gpt2_config.hpp>
#include <zeropp/train/checkpoint/find_weights.hpp>

namespace mini_gpt {

namespace {

constexpr const char* tokenizer_name = "tokenizer.json";
constexpr const char* own_tokenizer_name = "tokenizer.txt";  // where two tokens have the same bytes

bool is_there(const std::string& path) { return FileSystem::system().kind(path) != FileSystem::Kind::nothing; }

Gpt2Config config_of(const ModelConfig& m, const std::string& precision) {
  return {.n_layer = m.n_layer,
          .n_head = m.n_head,
          .n_embd = m.n_embd,
          .n_positions = m.block_size,
          .vocab_size = m.tokens ? m.tokens : m.vocabulary,
          .dropout = static_cast<double>(m.dropout),
          .dtype = precision == "fp32"   ? "float32"
                   : precision == "fp16" ? "float16"
                                         : "bfloat16"};
}

std::vector<SmallFile> for_transformers(Gpt2Config config, const std::string& tokenizer) {
  std::vector<SmallFile> files;
  if (!tokenizer.empty()) {
    const auto read = read_tokenizer(tokenizer, tokenizer_name);
    for (auto token : read.special())
      if (read.bytes_of(token) == "<|endoftext|>") config.end_of_text = token;
    files.push_back({tokenizer_name, tokenizer});
    files.push_back({"tokenizer_config.json", config.tokenizer_config()});
  }
  files.push_back({"config.json", config.to_json()});
  return files;
}

}  // namespace

void take_sizes_of_weights(Settings& s, const std::vector<std::string>& said) {
  auto& files = FileSystem::system();
  if (!is_there(s.weights)) return;  // check() says so
  const auto found = find_weights(files, s.weights);
  if (!found.index) (void)Safetensors(files, found.file, File::Links::follow);  // another kind of file is named first
  if (s.tokenizer.empty() && is_there(found.folder + "/tokenizer.json")) s.tokenizer = found.folder + "/tokenizer.json";
  const ModelConfig unsaid;
  const auto was_said = [&](const std::string& flag) {
    return std::find(said.begin(), said.end(), flag) != said.end();
  };
  const auto path = found.folder + "/config.json";
  if (!is_there(path)) {
    if (!was_said("--n-head") && !was_said("--model") && s.model.n_head == unsaid.n_head)
      throw ConfigError(
          text("there is no ", path, ", and weights alone do not say how many heads they have; give --n-head"));
    return;
  }
  const auto config = Gpt2Config::load(path, files);
  const auto take = [&](const char* flag, std::int64_t& value, std::int64_t standard, std::int64_t right) {
    if ((was_said(flag) || was_said("--model") || value != standard) && value != right)
      throw ConfigError(
          text(flag, " is ", value, ", but the weights have ", right, " as ", path, " says; leave the flag out"));
    value = right;
  };
  take("--n-layer", s.model.n_layer, unsaid.n_layer, config.n_layer);
  take("--n-head", s.model.n_head, unsaid.n_head, config.n_head);
  take("--n-embd", s.model.n_embd, unsaid.n_embd, config.n_embd);
  take("--block-size", s.model.block_size, unsaid.block_size, config.n_positions);
  auto& rows = s.model.vocabulary;
  if (was_said("--vocab-size") || was_said("--model") || rows != unsaid.vocabulary) {
    if (rows < config.vocab_size || (s.model.tokens && s.model.tokens != config.vocab_size))
      throw ConfigError(text("--vocab-size is ", s.model.tokens ? s.model.tokens : rows, ", but the weights have ",
                             config.vocab_size, " as ", path, " says; leave the flag out"));
  } else {
    rows = round_up(config.vocab_size, std::int64_t{64});
  }
  s.model.tokens = rows == config.vocab_size ? 0 : config.vocab_size;
}

void look_into_checkpoint(Settings& s) {
  if (s.resume == "none") return;
  auto& files = FileSystem::system();
  const auto store = s.out + "/checkpoints";
  const auto path = s.resume == "auto" ? store : CheckpointStore::step_of(s.resume) ? store + "/" + s.resume : s.resume;
  if (!is_there(path)) return;
  try {
    const auto found = OpenedCheckpoint::find(files, path, false);
    s.kept_tokens = 0;  // before there was training.json all rows of a table were tokens
    for (auto& file : found.texts.files)
      if (file.name == tokenizer_name || file.name == own_tokenizer_name) s.kept_tokenizer = file.content;
    const auto record = found.folder + "/training.json";
    const auto json = parse_strict_json(found.texts.config, record);
    if (json.contains("settings")) s.kept_tokens = json_count(json_member(json, "model", record), "tokens", record);
  } catch (const DataError&) {  // the resume itself says what is damaged
  }
}

Settings fitted(Settings s, const Corpus& corpus) {
  auto& tokens = s.model.tokens;
  if (tokens || !corpus.tokenizer) return s;
  if (s.kept_tokens)
    tokens = *s.kept_tokens;
  else if (const auto known = corpus.tokenizer->vocabulary(); s.weights.empty() && known < s.model.vocabulary)
    tokens = known;
  return s;
}

std::string record_of(const Settings& s, int ranks, const Corpus& corpus) {
  auto settings = nlohmann::json::object();
  for (auto& [name, value] : s.all(ranks)) settings[name] = value;
  const auto& m = s.model;
  const auto& [training, validation] = corpus.split;
  return nlohmann::json{{"settings", settings},
                        {"config_file", s.config_text},
                        {"model",
                         {{"n_layer", m.n_layer},
                          {"n_head", m.n_head},
                          {"n_embd", m.n_embd},
                          {"block_size", m.block_size},
                          {"vocabulary", m.vocabulary},
                          {"tokens", m.tokens},
                          {"dropout", m.dropout}}},
                        {"data",
                         {{"training tokens", training.size()},
                          {"held-out tokens", validation.size()},
                          {"checksum of the training tokens", text(fingerprint_of(*training.source))}}}}
             .dump(1) +
         "\n";
}

std::vector<std::string> changes(const std::string& before, const std::string& now) {
  const auto old = parse_strict_json(before, "training.json"), current = parse_strict_json(now, "training.json");
  std::vector<std::string> sentences;
  if (!old.is_object() || !old.contains("settings") || !old["settings"].is_object()) return sentences;  // of before there was one
  for (auto& [key, value] : current["model"].items())  // heads and used tokens are in no shape of a tensor
    if (const auto was = old.value("model", nlohmann::json::object()).value(key, nlohmann::json());
        key != "dropout" && was != value)
      throw DataError(text("the checkpoint is of another model: its ", key, " is ", was.dump(), ", now it is ",
                           value.dump(), "; start with the settings of that run, or begin anew with --resume none"));
  std::string all;
  const auto shown = [](const nlohmann::json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  for (auto& [name, value] : current["settings"].items())
    if (name != "--resume" && name != "--out")
      if (const auto was = old["settings"].value(name, nlohmann::json()); was != value)
        all += text(all.empty() ? "" : ", ", name, " ", was.is_null() ? "not there" : shown(was), " -> ", shown(value));
  if (!all.empty()) sentences.push_back("settings that changed since the checkpoint: " + all);
  if (const auto was = old.value("data", nlohmann::json()); was != current["data"])
    sentences.push_back(text("WARNING: the data changed since the checkpoint: ", was.dump(), " -> ",
                             current["data"].dump(),
                             "; its place in them goes on, and what is held out now may have been trained on"));
  return sentences;
}

std::vector<SmallFile> files_for_others(const Settings& s, const Corpus& corpus) {
  if (corpus.tokenizer_json.starts_with("zeropp tokenizer")) return {{own_tokenizer_name, corpus.tokenizer_json}};
  if (s.model.tokens && s.model.tokens != s.model.vocabulary)  // the padding would be tokens for other libraries
    return corpus.tokenizer_json.empty() ? std::vector<SmallFile>{}
                                         : std::vector<SmallFile>{{tokenizer_name, corpus.tokenizer_json}};
  return for_transformers(config_of(s.model, s.precision), corpus.tokenizer_json);
}

void expect_same_tokenizer(const CheckpointState& found, const Corpus& corpus) {
  const auto* kept = found.file(tokenizer_name);
  if (!kept) kept = found.file(own_tokenizer_name);
  if (!kept || !corpus.tokenizer) return;
  if (*kept != corpus.tokenizer_json && !(read_tokenizer(*kept, tokenizer_name) == *corpus.tokenizer))
    throw DataError(
        "the checkpoint was trained with another tokenizer than this run's; give the run's own data and "
        "--tokenizer, or begin anew with --resume none");
}

int export_command(int argc, char** argv) {
  std::vector<std::string> paths;
  std::int64_t heads = 0;
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--n-head" && i + 1 < argc) {
      const std::string_view value = argv[++i];
      const auto read = std::from_chars(value.data(), value.data() + value.size(), heads);
      if (read.ec != std::errc{} || read.ptr != value.data() + value.size() || heads < 1)
        throw ConfigError(text("--n-head must be a number from 1, got ", value));
    } else if (word.starts_with("-")) {
      throw ConfigError(text("export does not know ", word, "; mini_gpt export RUN FOLDER [--n-head N]"));
    } else {
      paths.push_back(word);
    }
  }
  if (paths.size() != 2)
    throw ConfigError(
        "mini_gpt export RUN FOLDER writes the newest checkpoint of a run (its --out, or one step-... folder) "
        "into a new folder that transformers loads");
  auto& files = FileSystem::system();
  const auto found = OpenedCheckpoint::find(files, paths[0]);
  const auto& manifest = found.manifest;
  if (manifest.naming != "gpt2")
    throw DataError(text(found.folder, " names its tensors by \"", manifest.naming,
                         "\", not as GPT-2 does; it is no run of mini_gpt"));
  ModelConfig model;
  const auto json = parse_strict_json(found.texts.config, found.folder + "/training.json");
  model.n_layer = model.n_head = 0;
  for (auto& p : manifest.parameters) {
    if (p.name == "wte.weight") model.vocabulary = p.shape.at(0), model.n_embd = p.shape.at(1);
    if (p.name == "wpe.weight") model.block_size = p.shape.at(0);
    model.n_layer += p.name.ends_with(".ln_1.weight");
  }
  if (json.contains("settings")) {
    const auto& said = json["model"];
    model.n_head = json_count(said, "n_head", "training.json"),
    model.tokens = json_count(said, "tokens", "training.json");
    model.dropout = said.value("dropout", 0.0f);
  }
  if (heads && model.n_head && heads != model.n_head)
    throw ConfigError(text("--n-head is ", heads, ", but the run had ", model.n_head, "; leave it out"));
  if (heads) model.n_head = heads;
  if (!model.n_head)
    throw ConfigError(text(found.folder, " does not say how many heads the model has; give --n-head N as in the run"));
  if (model.n_embd % model.n_head)
    throw ConfigError(text("a width of ", model.n_embd, " is not divisible by ", model.n_head, " heads"));
  std::string tokenizer;
  for (auto& file : found.texts.files)
    if (file.name == tokenizer_name) tokenizer = file.content;
  const auto config = config_of(model, manifest.precision);
  export_checkpoint(files, found, paths[1], for_transformers(config, tokenizer), config.vocab_size);
  std::printf("exported step %lld of %s to %s: %s%s\n", static_cast<long long>(manifest.step), found.folder.c_str(),
              paths[1].c_str(), "model.safetensors, config.json",
              tokenizer.empty() ? "; the checkpoint has no tokenizer.json" : ", tokenizer.json");
  return 0;
}

}  // namespace mini_gpt
