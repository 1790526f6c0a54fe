// SPDX-License-Identifier: Apache-2.0
#include "settings.hpp"

#include <filesystem>

#include <CLI/CLI.hpp>
#include <zeropp/app/config/deepspeed_config.hpp>
#include <zeropp/app/config/flag_numbers.hpp>
#include <zeropp/app/config/settle.hpp>

#include "gpu.hpp"
#include "help.hpp"
#include "record.hpp"

namespace mini_gpt {

namespace {

constexpr std::array sizes{"--n-layer", "--n-head", "--n-embd", "--block-size", "--vocab-size"};

void read_config(const std::string& path, Settings& s) {
  s.config_text = without_comments(path, read_text(FileSystem::system(), path));  // a checkpoint keeps JSON
  const ConfigFile file(path, s.config_text, ConfigDialect::deepspeed);
  auto root = file.root();
  read_deepspeed(root, s);
  auto model = root.section("model");
  if (std::string preset; model.read("preset", preset)) {
    s.model = ModelConfig::preset(preset);
    for (auto flag : sizes) s.origins.from_file(flag, model.place("preset"));
  }
  const auto rows = s.model.vocabulary;
  for (auto [key, value] : {std::pair{"n_layer", &s.model.n_layer},
                            {"n_head", &s.model.n_head},
                            {"n_embd", &s.model.n_embd},
                            {"block_size", &s.model.block_size},
                            {"vocab_size", &s.model.vocabulary}}) {
    std::string flag = text("--", key);
    std::replace(flag.begin(), flag.end(), '_', '-');
    deepspeed::take(model, key, *value, s, flag, 1, 1e9);
  }
  if (s.model.vocabulary != rows) s.model.tokens = 0;
  deepspeed::take(model, "dropout", s.model.dropout, s, "--dropout", 0, 0.999);
  model.finish();
  auto data = root.section("data");
  deepspeed::take(data, "path", s.data, s, "--data"), deepspeed::take(data, "format", s.format, s, "--data-format");
  deepspeed::take(data, "held_out", s.held_out, s, "--held-out", 0, 0.9);
  data.finish();
  root.finish();
}

/// The last value that the command line gives a flag.
std::optional<std::string> value_of(const std::string& flag, int argc, char** argv) {
  std::optional<std::string> value;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == flag && i + 1 < argc) value = argv[i + 1];
    if (word.starts_with(flag + "=")) value = word.substr(flag.size() + 1);
  }
  return value;
}

/// Refuses what CLI11 would cut to the nearest number that fits.
void expect_numbers(CLI::App& app) {
  for (auto* option : app.get_options()) {
    const auto type = option->get_type_name();
    if (type.starts_with("INT")) option->transform(CLI::Validator(wrong_integer<std::int64_t>, ""));
    if (type.starts_with("UINT")) option->transform(CLI::Validator(wrong_integer<std::uint64_t>, ""));
    if (type.starts_with("FLOAT")) option->transform(CLI::Validator([](auto& word) { return wrong_number(word); }, ""));
  }
}

/// Notes which settings flags gave.
void note_flags(const CLI::App& app, Settings& s) {
  const auto* preset = app.get_option("--model");
  if (preset->count())
    for (auto flag : sizes) s.origins.from_flag(flag, "flag --model");
  for (const auto* option : app.get_options())
    if (option->count()) s.origins.from_flag(option->get_name());
  if (s.origins.flag("--batch-tokens")) s.origins.from_flag("sequences a step", "flag --batch-tokens");
  if (s.origins.flag("--recompute-blocks")) s.origins.from_flag("--recompute");
}

/// Refuses sizes beyond what any machine holds, whose products would overflow or take for ever to plan, and counts below
/// what they count.
void expect_sizes(const Settings& s) {
  const auto expect = [&](const char* flag, std::int64_t value, std::int64_t least, std::int64_t most) {
    if (value < least || value > most)
      throw ConfigError(text(s.origins.name(flag), " must be from ", least, " to ", most, ", got ", value));
  };
  expect("--n-layer", s.model.n_layer, 1, 10000);
  expect("--n-head", s.model.n_head, 1, 1 << 16);
  expect("--n-embd", s.model.n_embd, 1, 1 << 20);
  expect("--block-size", s.model.block_size, 1, 1 << 26);
  expect("--vocab-size", s.model.vocabulary, 1, 1 << 26);
  expect("--threads", s.threads, 1, 4096);
  expect("--batch-tokens", s.batch_tokens, 0, std::int64_t{1} << 36);
  expect("--sample", s.sample_tokens, 0, 1 << 24);
  expect("--sample-every", s.sample_every, 0, std::int64_t{1} << 50);
  if (!(s.grad_clip >= 0))
    throw ConfigError(text(s.origins.name("--grad-clip"), " must be at least 0 (0 does not clip), got ", s.grad_clip));
}

/// Units to gather ahead, where a file says how many weights: blocks are the units that count.
void settle_prefetch(Settings& s) {
  if (s.prefetch || !s.prefetch_elements) return;
  if (s.backend == "cpu") {
    const bool usual = *s.prefetch_elements == 50000000;  // DeepSpeed's default
    if (s.zero == 3 && !usual)
      s.notes.push_back("zero_optimization.stage3_prefetch_bucket_size (on the host gathers do not overlap)");
    s.origins.by_default("--prefetch", "default");
    return;
  }
  const auto block = 12 * s.model.n_embd * s.model.n_embd + 13 * s.model.n_embd;
  s.prefetch = static_cast<int>(std::min(*s.prefetch_elements / std::max<std::int64_t>(1, block), s.model.n_layer));
}

}  // namespace

int parse(int argc, char** argv, Settings& s) {
  s.precision = "auto", s.graph = true;
  // The file first, then the preset: flags change what they say, in any order.
  if (const auto path = value_of("--config", argc, argv)) read_config(*path, s);
  if (const auto name = value_of("--model", argc, argv)) s.model = ModelConfig::preset(*name);
  CLI::App app{"Trains a GPT on text, sharded over ranks with ZeRO."};
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)->always_capture_default();
  std::string config, preset = "tiny";
  app.add_option("--config", config, "JSON file under DeepSpeed's keys");
  app.add_option("--model", preset, "tiny, 124M, 355M, 774M, 1558M");
  const auto add = [&](const char* flag, auto& value) { app.add_option(flag, value); };
  const auto rows = s.model.vocabulary;
  add("--n-layer", s.model.n_layer), add("--n-head", s.model.n_head), add("--n-embd", s.model.n_embd);
  add("--block-size", s.model.block_size), add("--dropout", s.model.dropout), add("--grad-clip", s.grad_clip);
  app.add_option("--warmup-steps", s.warmup_steps, "steps in which the rate rises to --lr; if not said, a quarter of all")
      ->default_str("");
  add("--steps", s.steps), add("--seed", s.seed), add("--out", s.out);
  add("--lr", s.lr), add("--min-lr", s.min_lr), add("--weight-decay", s.weight_decay), add("--keep", s.keep);
  add("--eval-every", s.eval_every), add("--save-every", s.save_every), add("--sample-every", s.sample_every);
  app.add_option("--vocab-size", s.model.vocabulary, "256: bytes; more: byte pairs learned from the text");
  app.add_option("--data", s.data, "text or tokens (llm.c, nanoGPT, Megatron): a file, or a folder of either");
  app.add_option("--data-format", s.format, "auto, or for tokens without a header raw (uint16) or raw32 (uint32)")
      ->check(CLI::IsMember({"auto", "raw", "raw32"}));
  app.add_option("--tokenizer", s.tokenizer,
                 "tokenizer.json or a file of tiktoken; else the one beside data or weights");
  app.add_option("--held-out", s.held_out, "fraction of the data for validation");
  app.add_option("--batch", s.micro_batch, "rows of a micro-batch on a rank; 0: all at once");
  app.add_option("--batch-tokens", s.batch_tokens, "tokens of a step over all ranks");
  app.add_option("--micro-batches", s.passes, "passes of a step, in place of --batch");
  app.add_option("--tp", s.tensor, "ranks that share each layer"),
      app.add_flag("--sequence-parallel", s.sequence_parallel, "they share the sequence too");
  app.add_option("--cp", s.context, "ranks that share each sequence; data ranks = ranks / (tp * pp * cp)"),
      app.add_option("--context-attention", s.context_attention)->check(CLI::IsMember({"ulysses", "ring"}));
  app.add_option("--pp", s.pipeline, "stages of a pipeline"),
      app.add_option("--schedule", s.pipeline_schedule, "of the pipeline")->check(CLI::IsMember(pipeline_kinds));
  app.add_option("--chunks", s.chunks, "parts of the model on a stage; 0: the fewest that the schedule takes");
  app.add_option("--lr-schedule", s.lr_schedule)->check(CLI::IsMember({"cosine", "linear", "constant"}));
  app.add_option("--zero", s.zero, "stage of ZeRO, 0 to 3")->check(CLI::Range(0, 3));
  app.add_option("--prefetch", s.prefetch, "units gathered ahead at stage 3; 2 on GPUs if not said"),
      app.add_option("--bucket-size", s.bucket_elements)->check(CLI::NonNegativeNumber);
  bool once = false;
  app.add_flag("--reduce-once", once, "sum gradients over ranks once a step, not after every micro-batch");
  app.add_flag("--recompute", s.recompute, "keep only the blocks' inputs");
  auto* first_blocks = app.add_option("--recompute-blocks", s.model.recompute_blocks, "only those of so many");
  app.add_flag("--recompute-gelu", s.model.recompute_gelu, "keep a quarter less, for a pass over the rest");
  app.add_flag("--no-graph{false}", s.graph, "enqueue every kernel of a step, not all at once as a CUDA graph");
  app.add_option("--precision", s.precision,
                 "auto: on GPUs the first that is compiled for them, bf16 unless it was said; else fp32")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}));
  app.add_option("--backend", s.backend, "auto: GPUs if there are any")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_flag("--share-gpus", s.share_gpus, "more ranks than GPUs take turns");
  app.add_option("--ranks", s.ranks, "ranks as threads; 0: what the environment says");
  auto* threads = app.add_option("--threads", s.threads, "of a rank on the CPU");
  app.add_option("--resume", s.resume, "auto, none, or a checkpoint folder");
  app.add_option("--weights", s.weights, "begin with a GPT-2 of Hugging Face: its folder or model.safetensors");
  app.add_option("--sample", s.sample_tokens, "tokens of a sample");
  app.add_flag("--dry-run", s.dry_run, "print the plan and stop"),
      app.add_flag("--doctor", s.doctor, "say what this machine offers");
  app.add_option("--simulate", s.simulation, "a step on a cluster that need not be there: mesh.json");
  app.add_option("--trace", s.trace, "of --simulate: its passes for Perfetto; with .svg a picture");
  expect_numbers(app);
  arrange_help(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) ? static_cast<int>(ExitCode::usage) : 0;
  }
  if (!s.simulation.empty())
    for (const auto* option : app.get_options())
      if (const auto name = option->get_name(); option->count() && name != "--simulate" && name != "--trace")
        throw ConfigError(text(name, ": a simulation is told everything by ", s.simulation, "; leave it out"));
  if (s.simulation.empty() && !s.trace.empty()) throw ConfigError("--trace goes with --simulate mesh.json");
  note_flags(app, s);
  if (!s.weights.empty()) {
    std::vector<std::string> said;
    for (const auto* option : app.get_options())
      if (option->count()) said.push_back(option->get_name());
    take_sizes_of_weights(s, said);
  }
  if (s.model.vocabulary != rows && s.weights.empty()) s.model.tokens = 0;
  if (!first_blocks->count()) {
    const bool some = s.recompute_blocks > 0 && !s.origins.flag("--recompute");
    s.model.recompute_blocks = !s.recompute ? 0
                               : some       ? std::min(s.recompute_blocks, s.model.n_layer)
                                            : s.model.n_layer;
  }
  s.recompute = s.model.recompute_blocks > 0;
  if (once) s.reduction = Reduction::once;
  if (s.backend == "auto") s.backend = gpu::count() > 0 ? "cuda" : "cpu";
  if (s.precision == "auto") {
    const auto on_gpus = s.backend == "cuda" ? gpu::precisions() : "fp32";
    s.precision = on_gpus.substr(0, on_gpus.find(';'));
  }
  if (s.backend == "cuda" && threads->count()) throw ConfigError("--threads are of CPU ranks; leave it out on GPUs");
  if (s.backend == "cpu" && !s.graph) throw ConfigError("--no-graph goes with GPUs, this run is on the CPU");
  if (s.backend == "cpu" && s.share_gpus) throw ConfigError("--share-gpus goes with GPUs, this run is on the CPU");
  if (s.batch_tokens > 0 && s.model.block_size > 0 && s.batch_tokens % s.model.block_size == 0)
    s.rows = s.batch_tokens / s.model.block_size;
  expect_sizes(s);
  settle_prefetch(s);
  settle_rates(s);
  return -1;
}

SettingList Settings::compared() const {
  auto all = TrainSettings::compared();
  for (auto& [name, value] :
       {Setting{"--n-layer", text(model.n_layer)}, Setting{"--n-head", text(model.n_head)},
        Setting{"--n-embd", text(model.n_embd)}, Setting{"--block-size", text(model.block_size)},
        Setting{"--vocab-size", text(model.vocabulary)}, Setting{"--dropout", text(model.dropout)},
        Setting{"--held-out", text(held_out)}, Setting{"--eval-every", text(eval_every)},
        Setting{"--save-every", text(save_every)}, Setting{"--sample-every", text(sample_every)},
        Setting{"--sample", text(sample_tokens)}, Setting{"--keep", text(keep)}, Setting{"--resume", resume},
        Setting{"--weights", weights}, Setting{"--out", out}, Setting{"--backend", backend}})
    all.push_back({name, value});
  all.push_back({"--data-format", format});
  all.push_back({"tokens of the model", text(model.tokens ? model.tokens : model.vocabulary)});
  return all;
}

SettingList Settings::all(int world_size) const {
  auto all = compared();
  all.insert(all.begin(), {"ranks", text(world_size)});
  const auto shown = [](const std::string& word) { return word.empty() ? std::string("none") : word; };
  for (auto& [name, value] :
       {Setting{"--data", shown(data)}, Setting{"--threads", text(threads)},
        Setting{"--sequence-parallel", sequence_parallel ? "true" : "false"},
        Setting{"--context-attention", context_attention},
        Setting{"--prefetch", prefetch ? text(*prefetch) : "as the device does best"},
        Setting{"--bucket-size", text(bucket_elements)},
        Setting{"--reduce-once", reduction == Reduction::once ? "true" : "false"},
        Setting{"--recompute", text(model.recompute_blocks, " of ", model.n_layer, " blocks")},
        Setting{"--recompute-gelu", model.recompute_gelu ? "true" : "false"},
        Setting{"steps_per_print", steps_per_print ? text(steps_per_print) : "about fifty lines"},
        Setting{"tensorboard", shown(tensorboard)}, Setting{"csv_monitor", shown(csv_monitor)}})
    all.push_back({name, value});
  return all;
}

Settings Settings::on(int world_size, const std::string& source) const {
  Settings s = *this;
  if (const auto block = std::max<std::int64_t>(1, model.block_size); batch_tokens < 0 || batch_tokens % block)
    throw ConfigError(
        text("--batch-tokens ", batch_tokens, " is no multiple of --block-size ", block,
             "; the nearest that is: ", std::max<std::int64_t>(1, (batch_tokens + block / 2) / block) * block));
  const auto axes = mesh(world_size);
  settle_batch(s, world_size / (axes.tensor * axes.pipeline * axes.context));
  if (s.origins.flag("--ranks"))
    s.origins.from_flag("ranks", "flag --ranks");
  else
    s.origins.by_default("ranks", dry_run ? "default" : text("launcher, ", source));
  s.check(world_size);
  return s;
}

void Settings::check(int world_size) const {
  const auto refuse = [](const auto&... parts) { throw ConfigError(text(parts...)); };
  const auto axes = mesh(world_size);
  (void)micro_batches(world_size / (axes.tensor * axes.pipeline * axes.context));
  (void)sharded();
  if (backend == "cuda" && gpu::precisions().find(precision) == std::string::npos)
    refuse("--precision ", precision, ": this mini_gpt was compiled for GPUs in ", gpu::precisions(),
           "; configure it with -DZEROPP_MINI_GPT_GPU_PRECISIONS=\"", gpu::precisions(), ";", precision,
           "\", or use --backend cpu");
  if (!weights.empty() && !std::filesystem::exists(weights))
    throw DataError(text("--weights ", weights, ": there is no such file"));
  if (data.empty() && !dry_run && !doctor) refuse("there is nothing to train on; give --data PATH");
  const auto positive = [&](const char* flag, std::int64_t value) {
    if (value < 1) refuse(flag, " must be at least 1, got ", value);
  };
  positive("--steps", steps), positive("--eval-every", eval_every), positive("--save-every", save_every);
  positive("--keep", keep), positive("--threads", threads);
  if (model.vocabulary < 256 && format == "auto")
    refuse("--vocab-size ", model.vocabulary, " is less than the 256 of single bytes");
  (void)LossScaler{loss_scaling()};
  (void)rate(0);
  if (model.recompute_blocks < 0 || model.recompute_blocks > model.n_layer)
    refuse("--recompute-blocks ", model.recompute_blocks, ": the model has ", model.n_layer, " blocks");
  (void)Gpt{model};  // widths and heads: the layers refuse
}

}  // namespace mini_gpt
