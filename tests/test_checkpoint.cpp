// SPDX-License-Identifier: Apache-2.0
// Checkpoints: what is saved comes back bit for bit, on the same ranks and stage, on others, and in another precision;
// weights under Hugging Face's names; what is not a checkpoint of this model is refused.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <memory>

#include <zeropp/parallel/sharding/sharded_model.hpp>
#include <zeropp/train/optimizers/optimizer.hpp>
#include <zeropp/train/sampler.hpp>

#include "support/checkpoints.hpp"
#include "support/tiny_gpt.hpp"

using namespace test;

namespace {

const ThreadOptions limit{.limit = std::chrono::seconds(20)};

constexpr Stage stages[] = {Stage::none, Stage::optimizer_states, Stage::gradients, Stage::parameters};

template <class P>
std::string save_at(const std::string& folder, int ranks, Stage stage, const Naming& naming = {}) {
  std::string bits;
  run_ranks(ranks, limit, [&](Comm comm) {
    RunOf<P> run(stage, comm);
    Checkpoints store{comm, folder, {.naming = naming}};
    run.train(3).save(store, {.step = 3, .seed = 11, .cursor = 42, .config = "{\"a\": 1}", .extra = "[true]"});
    const auto mine = run.bits();
    if (comm.rank() == 0) bits = mine;
  });
  return bits;
}

template <class P>
std::string resume_at(const std::string& folder, int ranks, Stage stage, int more = 0, const Naming& naming = {}) {
  std::string bits;
  run_ranks(ranks, limit, [&](Comm comm) {
    RunOf<P> run(stage, comm, 99);
    Checkpoints store{comm, folder, {.naming = naming}};
    const auto resumed = run.resume(store);
    REQUIRE(resumed);
    CHECK(resumed->step == 3);
    CHECK(resumed->seed == 11);
    CHECK(resumed->cursor == 42);
    CHECK(resumed->config == "{\"a\": 1}");
    CHECK(resumed->extra == "[true]");
    CHECK(resumed->refused.empty());
    CHECK(resumed->path == folder + "/step-00000003");
    const auto mine = run.train(more).bits();
    if (comm.rank() == 0) bits = mine;
  });
  return bits;
}

template <class P>
std::string straight(int ranks, Stage stage, int steps) {
  std::string bits;
  run_ranks(ranks, limit, [&](Comm comm) {
    const auto mine = RunOf<P>(stage, comm).train(steps).bits();
    if (comm.rank() == 0) bits = mine;
  });
  return bits;
}

template <class P>
void same_bits_everywhere() {
  for (int ranks : {1, 2, 3, 17})
    for (auto stage : stages) {
      CAPTURE(ranks);
      CAPTURE(static_cast<int>(stage));
      const Folder folder;
      const auto bits = save_at<P>(folder.path(), ranks, stage);
      CHECK(resume_at<P>(folder.path(), ranks, stage, 3) == straight<P>(ranks, stage, 6));
      for (int other : {1, 2, 3})
        for (auto other_stage : {Stage::none, Stage::gradients, Stage::parameters})
          CHECK(resume_at<P>(folder.path(), other, other_stage) == bits);
    }
}

/// Weights of a one-rank run as float, by name.
template <class R>
std::vector<float> values(R& run, const std::string& name) {
  const auto* p = run.model.parameters_by_name().find(name)->second;
  auto& unit = run.model.units()[static_cast<std::size_t>(p->unit)];
  auto lease = unit.lease();
  std::vector<float> out;
  for (auto w : unit.whole().subspan(static_cast<std::size_t>(p->offset), static_cast<std::size_t>(p->size())))
    out.push_back(static_cast<float>(w));
  return out;
}

/// Six steps of a small GPT with dropout and Adam; a second one takes its steps 4 to 6 from a checkpoint, and so does a
/// third one behind a ShardedModel and an Optimizer.
template <class P>
void gpt_resumes(Stage stage, const std::string& folder, int ranks) {
  run_ranks(ranks, limit, [&](Comm comm) {
    const TinyConfig config{.layers = 2};
    std::string bytes[3];
    const auto go = [&](int run, auto& model, auto& state, auto& adam) {
      Checkpoints store{comm, folder, {.naming = Naming::gpt2()}};
      auto batch = Batch::on(model.device(), 2, config.sequence);
      batch.first_sample = 2 * comm.rank();
      auto put = [&](const auto& value) { bytes[run].append(reinterpret_cast<const char*>(&value), sizeof value); };
      std::int64_t first = 0;
      if (run > 0) {
        const auto resumed = store.resume(state, adam);
        REQUIRE(resumed);
        first = resumed->step;
        CHECK(first == 3);
      }
      for (auto step = first; step < 6; ++step) {
        const Random random(5, RandomPurpose::test, static_cast<std::uint64_t>(comm.rank()),
                            static_cast<std::uint64_t>(step));
        for (std::int64_t i = 0; i < batch.tokens.size(); ++i) {
          batch.tokens.data()[i] = static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(2 * i)) % 61);
          batch.labels.data()[i] = static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(2 * i + 1)) % 61);
        }
        const auto loss = model.train(batch).mean();
        const auto clip = clip_by_global_norm(model, 1.0f);
        adam.step(3e-3f, clip);
        if (step >= 3) put(loss), put(clip.norm());
        if (run == 0 && step == 2) store.save(state, adam, {.step = 3});
      }
      put(model.evaluate(batch).mean());
      for (auto token : sample(model, {1, 2}, 5, config.sequence, config.vocabulary)) put(token);
      for (auto& unit : state.units()) {
        auto lease = unit.lease();
        for (auto weight : unit.whole()) put(weight);
        for (auto kept : unit.masters()) put(kept);
      }
      for (std::size_t u = 0; u < state.units().size(); ++u)
        for (auto moments : {adam.slot(0, u), adam.slot(1, u)})
          for (auto moment : moments) put(moment);
    };
    using Model = ShardedEngine<Plain, P>;
    const ShardedOptions options{.seed = 3};
    for (int run : {0, 1}) {
      Cpu device;
      Model model{comm, device, Plain{config}, stage, options};
      FusedAdam adam{model, {}};
      go(run, model, model, adam);
    }
    Cpu device;
    const std::unique_ptr<ShardedModel<P, Cpu>> model =
        std::make_unique<ShardedModelOf<Model>>(comm, device, Plain{config}, stage, options);
    const std::unique_ptr<zeropp::Optimizer<state_t<P>>> adam =
        std::make_unique<FusedAdam<ShardedState<P, Cpu>>>(model->state());
    CHECK(model->state().stage() == stage);
    CHECK(model->parameters() == model->state().parameters());
    go(2, *model, model->state(), *adam);
    CHECK(bytes[0] == bytes[2]);
    CHECK(bytes[0].size() > 1000);
    CHECK(bytes[0] == bytes[1]);
  });
}

/// Weights after steps of Adam whose gradients are given, element by element, and which round stochastically. From a
/// checkpoint in `load`, if that is said; another is left in `save`.
std::string rounded(int ranks, Stage stage, int steps, const std::string& load, const std::string& save) {
  std::string bits;
  run_ranks(ranks, limit, [&](Comm comm) {
    Cpu device;
    ShardedEngine<Layers, Bf16Stochastic> model{comm, device, layers(), stage, {.seed = 5}};
    FusedAdam adam{model, {}};
    if (!load.empty()) {
      Checkpoints store{comm, load};
      REQUIRE(store.resume(model, adam));
    }
    for (int step = 0; step < steps; ++step) {
      for (auto& unit : model.units()) {
        const Random random(6, RandomPurpose::test, static_cast<std::uint64_t>(unit.index()),
                            static_cast<std::uint64_t>(model.step()));
        auto at = unit.updated().begin;
        for (auto& g : unit.gradients())
          g = bf16(at < unit.size() ? random.uniform(static_cast<std::uint64_t>(at)) - 0.5f : 0.0f), ++at;
      }
      model.finish_gradients();
      adam.step(1e-3f);
    }
    std::string mine;
    for (auto& unit : model.units()) {
      auto lease = unit.lease();
      mine.append(reinterpret_cast<const char*>(unit.whole().data()), static_cast<std::size_t>(unit.size()) * 2);
    }
    if (!save.empty()) Checkpoints{comm, save}.save(model, adam, {.step = model.step()});
    if (comm.rank() == 0) bits = mine;
  });
  return bits;
}

}  // namespace

TEST_CASE("the bits of stochastic rounding depend on neither ranks nor stage, and go on after a checkpoint on others") {
  const auto six = rounded(1, Stage::none, 6, {}, {});
  CHECK(six != rounded(1, Stage::none, 5, {}, {}));
  for (int ranks : {1, 2, 3, 17})
    for (auto stage : stages) {
      CAPTURE(ranks);
      CAPTURE(static_cast<int>(stage));
      CHECK(rounded(ranks, stage, 6, {}, {}) == six);
      const Folder folder;
      rounded(ranks, stage, 3, {}, folder.path());
      CHECK(rounded(2, Stage::gradients, 3, folder.path(), {}) == six);
      CHECK(rounded(3, Stage::parameters, 3, folder.path(), {}) == six);
    }
}

TEST_CASE("those bits are numbered by seed, step, parameter and element") {
  Cpu device;
  auto decaying = layers();
  for (auto* layer : {&decaying.a, &decaying.b, &decaying.c})
    for (auto& p : layer->list) p.decay = true;
  Sharded<Layers, Stage::none, Bf16Stochastic> model{Comm{}, device, std::move(decaying), {.seed = 5}};
  FusedAdam adam{model, {.weight_decay = 0.1f}};
  for (std::uint64_t step = 1; step <= 3; ++step) {
    std::vector<std::vector<bf16>> expected;  // without gradients a step is one product
    for (auto& unit : model.units()) {
      std::ranges::fill(unit.gradients(), bf16(0.0f));
      auto& weights = expected.emplace_back(unit.whole().begin(), unit.whole().end());
      for (auto* p : unit.parameters()) {
        const Random random(5, RandomPurpose::stochastic_rounding, hash_of(p->name), step);
        for (std::int64_t i = 0; i < p->size(); ++i) {
          auto& w = weights[static_cast<std::size_t>(p->offset + i)];
          w = rounded_stochastically(static_cast<float>(w) * static_cast<float>(1 - 0.125 * static_cast<double>(0.1f)),
                                     random.half(static_cast<std::uint64_t>(i)));
        }
      }
    }
    model.finish_gradients();
    adam.step(0.125f);
    for (std::size_t u = 0; u < expected.size(); ++u)
      for (std::size_t i = 0; i < expected[u].size(); ++i)
        CHECK(model.units()[u].whole()[i].bits == expected[u][i].bits);
  }
}

TEST_CASE("fp32: three steps, a checkpoint and three more are six steps; any ranks and stage load the same bits") {
  same_bits_everywhere<Fp32>();
}
TEST_CASE("bf16: the same with masters, moments and remainders") { same_bits_everywhere<Bf16>(); }
TEST_CASE("fp16: the same with whole masters") { same_bits_everywhere<Fp16>(); }
TEST_CASE("bf16 without masters: the same with weights and moments") { same_bits_everywhere<Bf16Stochastic>(); }
TEST_CASE("fp64: the same") {
  const Folder folder;
  const auto bits = save_at<Fp64>(folder.path(), 2, Stage::gradients);
  CHECK(resume_at<Fp64>(folder.path(), 3, Stage::parameters) == bits);
}

TEST_CASE("a GPT trained three steps, resumed, and trained three more has the bits of six steps") {
  for (int ranks : {1, 2, 3})
    for (auto stage : stages) {
      CAPTURE(ranks);
      CAPTURE(static_cast<int>(stage));
      const Folder folder;
      gpt_resumes<Fp32>(stage, folder / "fp32", ranks);
      gpt_resumes<Bf16>(stage, folder / "bf16", ranks);
      gpt_resumes<Fp16>(stage, folder / "fp16", ranks);
      gpt_resumes<Bf16Stochastic>(stage, folder / "bf16-stochastic", ranks);
    }
}

TEST_CASE("masters survive a change of precision exactly; a narrower one is refused") {
  const Folder fp32, bf16_back, fp64, half;
  run_ranks(2, limit, [&](Comm comm) {
    Run<Stage::gradients> a(comm);
    Checkpoints first{comm, fp32.path()};
    a.train(3).save(first, {.step = 3});
    Run<Stage::parameters, Bf16> b(comm, 2);
    REQUIRE(b.resume(first));
    Checkpoints second{comm, bf16_back.path()};
    b.save(second, {.step = 3});
    Run<Stage::none> c(comm, 3);
    REQUIRE(c.resume(second));
    CHECK(c.bits() == a.bits());

    // the same through fp16, whose masters are whole: from fp32, back to it, and from there to bf16
    Run<Stage::optimizer_states, Fp16> h(comm, 6);
    REQUIRE(h.resume(second));
    Checkpoints fourth{comm, half.path()};
    h.save(fourth, {.step = 3});
    Run<Stage::gradients> d(comm, 7);
    REQUIRE(d.resume(fourth));
    CHECK(d.bits() == a.bits());
    Run<Stage::none, Bf16> e(comm, 8);
    REQUIRE(e.resume(fourth));
    CHECK(e.bits() == b.bits());
    Run<Stage::none, Bf16Stochastic> without(comm, 9);
    CHECK(contains(sentence_of([&] { without.resume(fourth); }),
                   "holds fp32 masters (fp16), which bf16-stochastic does not"));

    Run<Stage::none, Fp64> wide(comm, 3);
    REQUIRE(wide.resume(second));
    Checkpoints third{comm, fp64.path()};
    wide.save(third, {.step = 3});
    const auto before = c.bits();
    CHECK(contains(sentence_of([&] { c.resume(third); }), "is F64, which float32 does not hold exactly"));
    CHECK(c.bits() == before);
  });
}

TEST_CASE("weights without masters are read exactly by wider precisions; masters are refused where there is no room") {
  const Folder narrow, split, fp32;
  run_ranks(2, limit, [&](Comm comm) {
    Run<Stage::gradients, Bf16Stochastic> a(comm);
    Checkpoints first{comm, narrow.path()};
    a.train(3).save(first, {.step = 3});
    Run<Stage::parameters, Bf16> b(comm, 2);
    Run<Stage::none> c(comm, 3);
    REQUIRE(b.resume(first));
    REQUIRE(c.resume(first));
    Checkpoints second{comm, split.path()}, third{comm, fp32.path()};
    b.save(second, {.step = 3});
    c.save(third, {.step = 3});
    Run<Stage::none> through(comm, 4);
    REQUIRE(through.resume(second));
    CHECK(through.bits() == c.bits());  // remainders were zero

    const auto before = a.bits();
    CHECK(
        contains(sentence_of([&] { a.resume(second); }), "holds fp32 masters (bf16), which bf16-stochastic does not"));
    CHECK(contains(sentence_of([&] { a.resume(third); }), "holds fp32 masters (fp32), which bf16-stochastic does not"));
    CHECK(a.bits() == before);
    a.train(2);
    load_weights(fp32 / "step-00000003", a.model);
    Run<Stage::none, Bf16Stochastic> again(comm, 5);
    REQUIRE(again.resume(first));
    for (std::size_t u = 0; u < again.model.units().size(); ++u) {
      auto one = a.model.units()[u].lease();
      const auto wanted = again.model.units()[u].whole(), got = a.model.units()[u].whole();
      for (std::int64_t i = 0; i < again.model.units()[u].size(); ++i)
        REQUIRE(got[static_cast<std::size_t>(i)].bits == wanted[static_cast<std::size_t>(i)].bits);
    }
  });
}

TEST_CASE("the folder holds what its documentation says, and GPT-2's matrices transposed") {
  const Folder folder;
  const auto bits = save_at<Fp32>(folder.path(), 2, Stage::parameters, Naming::gpt2());
  CHECK(names(folder.path()) == std::vector<std::string>{".lock", "latest", "step-00000003"});
  CHECK(contents(folder / "latest") == "step-00000003\n");
  const auto step = folder / "step-00000003";
  CHECK(names(step) == std::vector<std::string>{"manifest.json", "model.safetensors",
                                                "optimizer-00000-of-00002.safetensors",
                                                "optimizer-00001-of-00002.safetensors", "state.json", "training.json"});
  Safetensors file(FileSystem::system(), step + "/model.safetensors");
  CHECK(file.at("h.0.attn.c_attn.weight").shape == std::vector<std::int64_t>{3, 9});
  CHECK(file.at("wte.weight").shape == std::vector<std::int64_t>{7, 5});
  CHECK(file.at("empty").count() == 0);
  CHECK(file.metadata().at("format") == "pt");
  // The checkpoint says how it is named: a store with another naming loads it all the same.
  CHECK(resume_at<Fp32>(folder.path(), 1, Stage::none, 0, Naming::identity()) == bits);
  CHECK(resume_at<Fp32>(folder.path(), 3, Stage::parameters, 0, Naming::gpt2()) == bits);
  Run<Stage::none> run{Comm{}};
  Checkpoints store{Comm{}, folder.path()};
  run.resume(store);
  const auto ours = values(run, "h.0.attn.c_attn.weight");  // [9, 3]
  std::vector<float> theirs(27);
  file.read(file.at("h.0.attn.c_attn.weight"), 0, std::span{theirs});
  for (std::size_t out = 0; out < 9; ++out)
    for (std::size_t in = 0; in < 3; ++in) CHECK(ours[out * 3 + in] == theirs[in * 9 + out]);
  CHECK_THROWS_WITH_AS(Naming::called("llama"), doctest::Contains("identity and gpt2"), ConfigError);
}

TEST_CASE("a program keeps small files in its checkpoints; names of the library and of other places are refused") {
  const Folder folder;
  const std::vector<SmallFile> kept{
      {"config.json", "{\"n\": 1}"}, {"tokenizer.json", std::string("a\0b", 3)}, {"empty", ""}};
  run_ranks(2, limit, [&](Comm comm) {
    Run<Stage::parameters> run(comm), other(comm, 9);
    Checkpoints store{comm, folder.path()};
    run.save(store, {.step = 1, .files = kept});
    const auto resumed = other.resume(store);
    REQUIRE(resumed);
    REQUIRE(resumed->files.size() == 3);
    for (auto& file : kept) CHECK(*resumed->file(file.name) == file.content);
    CHECK(resumed->file("nothing") == nullptr);
    CHECK(resumed->config == "{}\n");
    for (const std::string name : {"../x", "a/b", ".lock", "", "manifest.json", "training.json", "state.json",
                                   "model.safetensors", "optimizer-00000-of-00002.safetensors", "a b"})
      CHECK(contains(sentence_of([&] {
                       run.save(store, {.step = 2, .files = {{name, "x"}}});
                     }),
                     "can not keep a file"));
    CHECK(contains(sentence_of([&] {
                     run.save(store, {.step = 2, .files = {{"a", "x"}, {"a", "y"}}});
                   }),
                   "of its own"));
  });
  // One bit of such a file is seen, and so is a manifest that names another place.
  const auto step = folder / "step-00000001";
  const auto resume = [&] {
    Run<Stage::none> run{Comm{}};
    Checkpoints store{Comm{}, folder.path()};
    return sentence_of([&] { run.resume(store); });
  };
  put(step + "/config.json", "{\"n\": 2}");
  CHECK(contains(resume(), "config.json differs: it is damaged"));
  put(step + "/config.json", kept[0].content);
  const auto path = step + "/manifest.json";
  const auto manifest = Manifest::from_text(contents(path), path);
  for (const std::string name : {"../config.json", "state.json", "tokenizer.json"}) {
    auto hostile = manifest;
    hostile.files[hostile.own_files()].name = name;
    put(path, hostile.to_text());
    CHECK(contains(resume(), "which no program keeps there"));
  }
  put(path, manifest.to_text());
  CHECK(resume() == "no error");
}

TEST_CASE("a folder of format 2, with the settings in config.json, loads") {
  const Folder folder;
  const auto bits = save_at<Bf16>(folder.path(), 2, Stage::gradients);
  const auto step = folder / "step-00000003", path = step + "/manifest.json";
  auto manifest = Manifest::from_text(contents(path), path);
  manifest.format = 2;
  manifest.files[0].name = "config.json";
  fs::rename(step + "/training.json", step + "/config.json");
  put(path, manifest.to_text());
  CHECK(resume_at<Bf16>(folder.path(), 3, Stage::parameters) == bits);
  manifest.files.push_back(manifest.files[0]);
  put(path, manifest.to_text());
  CHECK(contains(sentence_of([&] { Manifest::from_text(contents(path), path); }), "lists 6 files for 2 ranks"));
}

TEST_CASE("weights that a precision does not hold are refused by name") {
  const Folder folder;
  Run<Stage::none> wide{Comm{}};
  const auto with = [&](float value) {
    SafetensorsWriter writer(FileSystem::system(), folder.path(), text(value), detail::weight_specs(wide.model, {}, 0));
    for (auto& p : wide.model.model_parameters()) {
      auto all = values(wide, p.name);
      if (p.name == "h.0.attn.c_proj.bias") all[1] = value;
      writer.append(std::span<const float>{all});
    }
    writer.finish();
    return folder / text(value);
  };
  Run<Stage::parameters, Fp16> half{Comm{}};
  Run<Stage::parameters, Bf16> bf16s{Comm{}};
  CHECK(contains(
      sentence_of([&] { load_weights(with(1e5f), half.model); }),
      "h.0.attn.c_proj.bias in " + folder / text(1e5f) + " holds the value 1e+05, which float16 does not hold; train"));
  CHECK(
      contains(sentence_of([&] { load_weights(with(-65536.0f), half.model); }), "-65536, which float16 does not hold"));
  CHECK(sentence_of([&] { load_weights(with(65504.0f), half.model); }) == "no error");
  CHECK(sentence_of([&] { load_weights(folder / text(1e5f), bf16s.model); }) == "no error");
  CHECK(contains(sentence_of([&] { load_weights(with(3.4e38f), bf16s.model); }), "which bfloat16 does not hold"));
  for (float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    CHECK(contains(sentence_of([&] { load_weights(with(value), wide.model); }), "these weights cannot be trained"));
}

TEST_CASE("names that PyTorch's wrappers changed are understood") {
  const auto naming = Naming::gpt2();
  for (const std::string name : {"wte.weight", "transformer.wte.weight", "_orig_mod.wte.weight", "module.wte.weight",
                                 "module._orig_mod.transformer.wte.weight", "_orig_mod.module.transformer.wte.weight",
                                 "transformer._orig_mod.wte.weight", "_fsdp_wrapped_module.transformer.wte.weight"})
    CHECK(naming.parameter_of(name) == "wte.weight");
  CHECK(naming.parameter_of("transformer.h.3._orig_mod.attn.c_attn.weight") == "h.3.attn.c_attn.weight");
  CHECK(naming.parameter_of("submodule.wte.weight") == "submodule.wte.weight");
  CHECK(Naming::identity().parameter_of("module.wte.weight") == "module.wte.weight");
}

TEST_CASE("exported weights: padding stripped, prefixes, buffers and tied copies understood") {
  const Folder folder;
  Run<Stage::parameters, Bf16> run{Comm{}};
  const auto path = folder / "sub/export.safetensors";
  const WeightsOptions options{.naming = Naming::gpt2(), .vocabulary = 6};
  save_weights(path, run.model, options);
  CHECK(names(folder / "sub") == std::vector<std::string>{"export.safetensors"});
  Safetensors file(FileSystem::system(), path);
  CHECK(file.at("wte.weight").shape == std::vector<std::int64_t>{6, 5});
  CHECK(file.at("wte.weight").type.type == DType::bf16);

  Run<Stage::none> other{Comm{}, 2};
  load_weights(path, other.model, options);
  auto expected = values(run, "wte.weight");
  std::fill(expected.begin() + 30, expected.end(), 0.0f);
  CHECK(values(other, "wte.weight") == expected);
  CHECK(values(other, "h.0.attn.c_proj.weight") == values(run, "h.0.attn.c_proj.weight"));

  // The same tensors as another library would write them: prefixed, with a buffer and the head's copy of the embedding.
  const auto write = [&](const std::string& name, float head) {
    std::vector<TensorSpec> specs{{"transformer.h.0.attn.bias", DType::u8, {2}},
                                  {"lm_head.weight", DType::f32, {6, 5}}};
    for (auto& t : file.tensors()) specs.push_back({"transformer." + t.name, DType::f32, t.shape});
    SafetensorsWriter writer(FileSystem::system(), folder.path(), name, specs);
    const std::vector<std::uint8_t> buffer(2);
    writer.append(std::span<const std::uint8_t>{buffer});
    auto wte = std::vector<float>(30);
    file.read(file.at("wte.weight"), 0, std::span{wte});
    auto copy = wte;
    copy[29] += head;
    writer.append(std::span<const float>{copy});
    for (auto& t : file.tensors()) {
      std::vector<float> all(static_cast<std::size_t>(t.count()));
      file.read(t, 0, std::span{all});
      writer.append(std::span<const float>{all});
    }
    writer.finish();
    return folder / name;
  };
  Run<Stage::none> third{Comm{}, 3};
  load_weights(write("hf.safetensors", 0), third.model, options);
  CHECK(third.bits() == other.bits());
  CHECK(contains(sentence_of([&] { load_weights(write("untied.safetensors", 1), third.model, options); }),
                 "lm_head.weight differs from transformer.wte.weight"));
  CHECK(contains(sentence_of([&] { load_weights(folder / "hf.safetensors", third.model, {.naming = Naming::gpt2()}); }),
                 "tensor transformer.wte.weight in " + folder.path() +
                     "/hf.safetensors has the shape [6, 5], the model "
                     "needs [7, 5]"));
  CHECK(contains(sentence_of([&] { load_weights(folder / "hf.safetensors", third.model); }),
                 "no tensor for the parameter wte.weight of shape [7, 5]"));
  CHECK(contains(sentence_of([&] { load_weights(path, third.model, {.vocabulary = 6}); }), "naming identity"));
  CHECK(contains(sentence_of([&] { load_weights(path, third.model, {.naming = Naming::gpt2(), .vocabulary = 9}); }),
                 "wte.weight has 7 rows"));
  CHECK(third.bits() == other.bits());
}

TEST_CASE("a shard that lies wholly in the padding rows is filled with zeros") {
  const Folder folder;
  const WeightsOptions options{.naming = Naming::gpt2(), .vocabulary = 1};
  std::string bits;
  {
    Run<Stage::none> run{Comm{}};
    save_weights(folder / "one_row", run.model, options);
    load_weights(folder / "one_row", run.model, options);
    const auto rows = values(run, "wte.weight");
    CHECK(std::count(rows.begin(), rows.begin() + 5, 0.0f) == 0);
    CHECK(std::count(rows.begin() + 5, rows.end(), 0.0f) == 30);
    bits = run.bits();
  }
  for (int ranks : {2, 3, 7, 17})
    run_ranks(ranks, limit, [&](Comm comm) {
      for (auto stage : {Stage::none, Stage::gradients, Stage::parameters}) {
        RunOf<Fp32> run(stage, comm, 2);
        load_weights(folder / "one_row", run.model, options);
        CHECK(run.bits() == bits);
      }
    });
}

TEST_CASE("many ranks as threads open few files at a time") {
  const Folder folder;
  const auto bits = save_at<Fp32>(folder.path(), 16, Stage::parameters);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  auto low = before;
  low.rlim_cur = names("/proc/self/fd").size() + 64;  // 16 ranks of 16 files each would be 256
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &low) == 0);
  std::string resumed;
  CHECK_NOTHROW(resumed = resume_at<Fp32>(folder.path(), 16, Stage::parameters));
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(resumed == bits);
}

TEST_CASE("a folder of format 1, from before there were meshes, loads") {
  const std::string folder = ZEROPP_TEST_SOURCE "/checkpoint_format_1";
  for (int ranks : {1, 3}) {
    const Folder out;
    run_ranks(ranks, limit, [&](Comm comm) {
      Run<Stage::parameters, Bf16> run(comm, 99);
      Checkpoints store{comm, out.path()};
      const auto resumed = run.resume(store, folder);
      REQUIRE(resumed);
      CHECK(resumed->step == 3);
      CHECK(resumed->seed == 11);
      // The checksum of the state when it was saved, two ranks at stage 2.
      CHECK(checksum_text(Checksum::of(run.bits())) == "4c8001feee890baf");
    });
  }
}

TEST_CASE("a file of PyTorch's GPT-2 tensors loads, and exports to the same bytes of every tensor") {
  const Folder folder;
  const std::string fixture = ZEROPP_TEST_SOURCE "/parity/gpt2_small.safetensors";
  Cpu device;
  Sharded<Plain, Stage::parameters> model{
      Comm{}, device, Plain{{.vocabulary = 96, .sequence = 24, .width = 32, .heads = 4, .layers = 2}}};
  load_weights(fixture, model, {.naming = Naming::gpt2()});
  save_weights(folder / "ours", model, {.naming = Naming::gpt2()});
  Safetensors a(FileSystem::system(), fixture), b(FileSystem::system(), folder / "ours");
  CHECK(a.tensors().size() == b.tensors().size());
  for (auto& t : a.tensors()) {
    std::vector<float> x(static_cast<std::size_t>(t.count())), y(x.size());
    a.read(t, 0, std::span{x});
    b.read(b.at(t.name), 0, std::span{y});
    CHECK(b.at(t.name).shape == t.shape);
    CHECK_MESSAGE(std::memcmp(x.data(), y.data(), x.size() * 4) == 0, t.name);
  }
}

TEST_CASE("weights in several files with an index; hostile names in it are refused") {
  const Folder folder, outside;
  Run<Stage::none> run{Comm{}};
  std::vector<TensorSpec> specs;
  auto& files = FileSystem::system();
  fs::create_directory(folder / "m");
  const auto part = [&](const std::string& where, const std::string& name, std::vector<std::string> parameters) {
    specs.clear();
    for (auto& p : parameters) specs.push_back({p, DType::f32, run.model.parameters_by_name().find(p)->second->shape});
    SafetensorsWriter writer(files, where, name, specs);
    for (auto& p : parameters) {
      const auto all = values(run, p);
      writer.append(std::span<const float>{all});
    }
    writer.finish();
  };
  const std::vector<std::string> a{"wte.weight", "empty", "one"},
      b{"h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias"};
  part(folder / "m", "1.safetensors", a);
  part(folder / "m", "2.safetensors", b);
  part(outside.path(), "2.safetensors", b);
  const auto index = [&](const std::string& second) {
    nlohmann::json map;
    for (auto& p : a) map[p] = "1.safetensors";
    for (auto& p : b) map[p] = second;
    put(folder / "m/model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
    Run<Stage::none> other{Comm{}, 2};
    const auto before = other.bits();
    const auto error = sentence_of([&] { load_weights(folder / "m", other.model); });
    CHECK(other.bits() == (error == "no error" ? run.bits() : before));
    return error;
  };
  CHECK(index("2.safetensors") == "no error");
  fs::create_symlink(outside / "2.safetensors", folder / "m/link.safetensors");
  put(folder / "2.safetensors", contents(folder / "m/2.safetensors"));
  CHECK(contains(index("../2.safetensors"), "may only name files beside it"));
  CHECK(contains(index(outside / "2.safetensors"), "may only name files beside it"));
  CHECK(contains(index(".."), "may only name files beside it"));
  CHECK(contains(index(""), "may only name files beside it"));
  CHECK(contains(index("link.safetensors"), "a symbolic link is not followed there"));
  CHECK(contains(index("missing.safetensors"), "No such file"));
  CHECK(contains(index("1.safetensors"), "it does not"));
  put(folder / "m/model.safetensors.index.json", R"({"weight_map": {"a": 1}})");
  CHECK(contains(sentence_of([&] { load_weights(folder / "m", run.model); }), "the file of a must be a string"));
  CHECK(contains(sentence_of([&] { load_weights(outside.path(), run.model); }), "holds neither model.safetensors nor"));
}

TEST_CASE("a checkpoint of another model is refused with the first difference, and nothing changes") {
  const Folder folder;
  save_at<Fp32>(folder.path(), 2, Stage::gradients);
  const auto refusal = [&](auto change) {
    auto other = layers();
    change(other);
    std::string error;
    run_ranks(2, limit, [&](Comm comm) {
      Run<Stage::parameters> run(comm, 5, other);
      const auto before = run.bits();
      Checkpoints store{comm, folder.path()};
      const auto mine = sentence_of([&] { run.resume(store); });
      CHECK(run.bits() == before);
      if (comm.rank() == 1) error = mine;
    });
    return error;
  };
  CHECK(contains(
      refusal([](Layers& l) {
        l.b.list[0].shape = {9, 4};
      }),
      "it has h.0.attn.c_attn.weight of shape [9, 3] where the model has h.0.attn.c_attn.weight of shape [9, 4]"));
  CHECK(contains(refusal([](Layers& l) { l.b.list[2].name = "other"; }),
                 "h.0.attn.c_proj.bias of shape [3] where the model has other of shape [3]"));
  CHECK(contains(refusal([](Layers& l) {
                   l.c.list.push_back({"more", {2}});
                 }),
                 "ends before the model's more of shape [2]"));
  CHECK(contains(refusal([](Layers& l) { l.c.list.clear(); }), "the model ends before its one of shape [1]"));
}

TEST_CASE("keeps the newest, resumes from a named one, and follows the run that went back") {
  const Folder folder;
  Run<Stage::none> run{Comm{}};
  std::string at_20;
  {
    Checkpoints store{Comm{}, folder.path() + "///", {.keep = 3}};
    CHECK(!run.resume(store));
    for (std::int64_t step : {10, 20, 30, 40}) {
      CHECK(run.train(1).save(store, {.step = step}) == folder.path() + "/" + CheckpointStore::name_of(step));
      if (step == 20) at_20 = run.bits();
    }
  }
  CHECK(names(folder.path()) ==
        std::vector<std::string>{".lock", "latest", "step-00000020", "step-00000030", "step-00000040"});
  {
    Checkpoints store{Comm{}, folder.path(), {.keep = 3}};
    CHECK(run.resume(store)->step == 40);
    CHECK(run.resume(store, folder / "step-00000030/")->step == 30);
    CHECK(run.resume(store, "step-00000020")->step == 20);
    CHECK(run.bits() == at_20);
    CHECK(contains(sentence_of([&] { run.resume(store, "step-00000021"); }), "No such file"));
    run.train(1).save(store, {.step = 25});
  }
  const auto at_25 = run.bits();
  {
    Checkpoints store{Comm{}, folder.path(), {.keep = 3}};
    CHECK(run.resume(store)->step == 25);  // not 40, which the run went back from
    CHECK(run.bits() == at_25);
    run.train(1).save(store, {.step = 30});  // replaces
    CHECK(run.resume(store)->step == 30);
    CHECK(contents(folder / "latest") == "step-00000030\n");
    fs::remove(folder / "latest");
    CHECK(run.resume(store)->refused.size() == 1);  // says that latest is missing
  }
  CHECK_THROWS_AS((Checkpoints{Comm{}, folder.path(), {.keep = -1}}), ConfigError);
  CHECK_THROWS_AS((Checkpoints{Comm{}, ""}), ConfigError);
  Checkpoints store{Comm{}, folder.path()};
  CHECK(contains(sentence_of([&] { run.save(store, {.step = -1}); }), "steps count from 0"));
  CHECK(contains(sentence_of([&] { run.save(store, {.step = 1, .config = "{"}); }), "config of the checkpoint"));
  CHECK(contains(sentence_of([&] { run.save(store, {.step = 1, .extra = "{\"a\":1,\"a\":2}"}); }), "twice"));
}
