// SPDX-License-Identifier: Apache-2.0
// Settings from JSON: what DeepSpeed's keys amount to, and every way in which a file is refused, with its line.
#include <doctest/doctest.h>

#include <zeropp/app/config/deepspeed_config.hpp>

using namespace zeropp;

namespace {

TrainSettings read(const std::string& content) {
  const ConfigFile file("ds.json", content);
  auto root = file.root();
  TrainSettings settings;
  read_deepspeed(root, settings);
  root.finish();
  return settings;
}

void refused(const std::string& content, const char* sentence) {
  CAPTURE(content);
  CHECK_THROWS_WITH_AS(read(content), doctest::Contains(sentence), ConfigError);
}

}  // namespace

TEST_CASE("DeepSpeed's keys") {
  const auto s = read(R"({
    "train_batch_size": 48, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3,
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 5e5, "prefetch_units": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.8, 0.999], "eps": 1e-6, "weight_decay": 0.2}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 900, "warmup_num_steps": 30, "cos_min_ratio": 0.1}},
    "bf16": {"enabled": true}, "gradient_clipping": 0.5, "seed": 18446744073709551615, "activation_checkpointing": true
  })");
  CHECK(s.rows == 48);
  CHECK(s.micro_batch == 4);
  CHECK(s.implied_data_ranks == 4);
  CHECK(s.implied_ranks() == 4);
  CHECK(s.micro_batches(4) == 3);
  CHECK(s.zero == 3);
  CHECK(s.bucket_elements == 500000);
  CHECK(s.prefetch == 1);
  CHECK(s.lr == 1e-3f);
  CHECK(s.betas == std::array{0.8f, 0.999f});
  CHECK(s.epsilon == 1e-6f);
  CHECK(s.weight_decay == 0.2f);
  CHECK(s.steps == 900);
  CHECK(s.warmup_steps == 30);
  CHECK(s.min_lr == doctest::Approx(1e-4));
  CHECK(s.precision == "bf16");
  CHECK(s.grad_clip == 0.5f);
  CHECK(s.seed == ~std::uint64_t{0});
  CHECK(s.recompute);
  CHECK(read("{}").lr == TrainSettings{}.lr);

  const auto mesh =
      read(R"({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 6,
    "tensor_parallel": {"autotp_size": 2, "sequence_parallel": true},
    "pipeline": {"stages": 4, "schedule": "interleaved", "chunks": 3}})");
  CHECK(mesh.tensor == 2);
  CHECK(mesh.pipeline == 4);
  CHECK(mesh.implied_ranks() == 16);
  CHECK(mesh.micro_batches(2) == 6);
  CHECK(mesh.mesh(16).tensor == 2);
  CHECK(mesh.mesh(16).pipeline == 4);
  const auto parallel = mesh.parallel();
  CHECK(parallel.schedule == PipelineKind::interleaved);
  CHECK(parallel.chunks == 3);
  CHECK(parallel.sequence_parallel);
  CHECK(read(R"({"pipeline": {"schedule": "zb-v"}})").parallel().chunks == 2);
  CHECK(TrainSettings{}.parallel().chunks == 1);
}

TEST_CASE("syntax, duplicates, unknown keys, types, ranges: with the line") {
  refused("{\n\"seed\": 1,,\n}", "ds.json line 2: not valid JSON");
  refused("", "ds.json line 1: not valid JSON");
  refused("{\"seed\": 1} x", "ds.json line 1: not valid JSON");
  refused("[1]", "\"the file\" must be an object, got an array");
  refused("{\n\"seed\": 1,\n\n\"seed\": 2}", "ds.json line 4: the key \"seed\" stands there again, first on line 2");
  refused("{\"bf16\": {\"enabled\": true,\n \"enabled\": true}}", "line 2: the key \"enabled\" stands there again");
  refused("{\n\n\"gradient_cliping\": 1}",
          "line 3: unknown key \"gradient_cliping\"; the nearest that exists is \"gradient_clipping\"");
  refused("{\"zero_optimization\": {\n\"stages\": 1}}",
          "line 2: unknown key \"stages\" in \"zero_optimization\"; the nearest that exists is \"stage\"");
  refused("{\"optimizer\": {\"params\": {\n\n\"weight_decy\": 1}}}",
          "line 3: unknown key \"weight_decy\" in \"optimizer.params\"");
  refused("{\n\"seed\": \"one\"}", "line 2: \"seed\" must be a whole number, got \"one\"");
  refused("{\"seed\": 1.5}", "must be a whole number, got 1.5");
  refused("{\"seed\": -1}", "\"seed\" must be at least 0, got -1");
  refused("{\"bf16\": {\"enabled\": 1}}", "\"bf16.enabled\" must be true or false, got 1");
  refused("{\"zero_optimization\": {\"stage\": 4}}", "\"zero_optimization.stage\" must be from 0 to 3, got 4");
  refused("{\"zero_optimization\": 2}", "\"zero_optimization\" must be an object, got 2");
  refused("{\"optimizer\": {\"params\": {\"betas\": [0.9]}}}", "must be an array of 2 numbers");
  refused("{\"optimizer\": {\"params\": {\"betas\": [0.9, \"x\"]}}}",
          "\"optimizer.params.betas[1]\" must be a number, got \"x\"");
  refused("{\"optimizer\": {\"params\": {\"lr\": 1e999}}}", "ds.json line 1");
  refused("{\"optimizer\": {\n\"type\": \"Lion\"}}", "line 2: \"optimizer.type\" must be \"AdamW\", got \"Lion\"");
  refused("{\"scheduler\": {\"type\": \"OneCycle\"}}",
          "must be WarmupCosineLR, WarmupDecayLR or WarmupLR, got \"OneCycle\"");
  refused("{\"pipeline\": {\n\"schedule\": \"dualpipe\"}}",
          "line 2: \"pipeline.schedule\" must be gpipe, 1f1b, interleaved, zb-h1 or zb-v, got \"dualpipe\"");
  refused("{\"tensor_parallel\": {\"autotp_size\": 0}}", "\"tensor_parallel.autotp_size\" must be from 1 to");
  refused("{\"amp\": {\"enabled\": true}}", "unknown key \"amp\"");
}

TEST_CASE("fp16 and its loss scale") {
  const auto s =
      read(R"({"fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 500,
                                   "hysteresis": 3, "min_loss_scale": 4}, "bf16": {"enabled": false}})");
  CHECK(s.precision == "fp16");
  CHECK(LossScaler{s.loss_scaling()}.state() == LossScaleState{4096, 0, 3});
  CHECK(s.loss_scaling().window == 500);
  CHECK(s.loss_scaling().minimum == 4);
  const auto fixed = read(R"({"fp16": {"enabled": true, "loss_scale": 128}})");
  CHECK(LossScaler{fixed.loss_scaling()}.scale() == 128);
  CHECK(!LossScaler{fixed.loss_scaling()}.adapts());
  CHECK(LossScaler{read(R"({"fp16": {"enabled": true}})").loss_scaling()}.state() == LossScaleState{65536, 0, 2});
  const auto off = read(R"({"fp16": {"enabled": false, "initial_scale_power": 12}, "bf16": {"enabled": true}})");
  CHECK(off.precision == "bf16");
  CHECK(LossScaler{off.loss_scaling()}.scale() == 1);
  CHECK(!LossScaler{off.loss_scaling()}.adapts());
  CHECK(read(R"({"fp16": {"enabled": false}})").precision == "fp32");

  refused("{\"bf16\": {\"enabled\": true},\n\"fp16\": {\"enabled\": true}}",
          "line 2: \"fp16\" and \"bf16\" are both enabled; a run has one precision");
  refused("{\"fp16\": {\"loss_scale\": 100}}", "\"fp16\" does not fit: loss scales are powers of two");
  refused("{\"fp16\": {\"initial_scale_power\": 200}}", "\"fp16.initial_scale_power\" must be from 0 to 126");
  refused("{\"fp16\": {\"initial_scale_power\": 2, \"min_loss_scale\": 8}}", "the initial loss scale 4 is below");
  refused("{\"fp16\": {\"hysteresis\": 0}}", "\"fp16.hysteresis\" must be from 1 to");
  refused("{\"fp16\": {\"loss_scale_windw\": 1}}", "the nearest that exists is \"loss_scale_window\"");
}

TEST_CASE("batch sizes that contradict each other are refused with the nearest that fit") {
  refused(R"({"train_batch_size": 50, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3})",
          "of 50 is not micro-batch 4 x accumulation 3 x a number of ranks; the nearest that is: 48");
  refused(R"({"gradient_accumulation_steps": 3})",
          "is derived; give train_batch_size and train_micro_batch_size_per_gpu with it");
  TrainSettings s;
  s.rows = 50;
  s.micro_batch = 4;
  CHECK_THROWS_WITH_AS(s.micro_batches(3),
                       doctest::Contains("a step of 50 sequences is not micro-batch 4 x 3 ranks x a number of "
                                         "micro-batches; the nearest that is: 48 sequences"),
                       ConfigError);
  s.rows = 1;
  CHECK_THROWS_WITH_AS(s.micro_batches(3), doctest::Contains("the nearest that is: 12 sequences"), ConfigError);
  s.micro_batch = 0;
  CHECK(s.micro_batches(3) == 1);
  s.passes = 4;
  s.rows = 8;
  CHECK(s.micro_batches(2) == 4);
  CHECK_THROWS_WITH_AS(s.micro_batches(3),
                       doctest::Contains("a step of 8 sequences on 3 data ranks can not be cut into 4 micro-batches; "
                                         "at most 2"),
                       ConfigError);
  s.micro_batch = 1;
  CHECK_THROWS_WITH_AS(s.micro_batches(4), doctest::Contains("on 4 data ranks makes 2 micro-batches, not 4"),
                       ConfigError);
  s.tensor = 3;
  s.pipeline = 2;
  CHECK(s.mesh(12).tensor == 3);
  CHECK_THROWS_WITH_AS(s.mesh(8),
                       doctest::Contains("3 tensor x 2 pipeline x 1 context ranks do not divide 8 ranks; their product "
                                         "can be 1, 2, 4, 8"),
                       ConfigError);
  s.tensor = 0;
  CHECK_THROWS_AS(s.mesh(8), ConfigError);
  s.lr_schedule = "cosin";
  CHECK_THROWS_AS(s.rate(0), ConfigError);
}
