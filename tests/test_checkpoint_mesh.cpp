// SPDX-License-Identifier: Apache-2.0
// Checkpoints over meshes: saved on one mesh of data, tensor and pipeline ranks, loaded on another, at other stages of
// ZeRO. All weights, remainders and moments have the same bits, and training goes on as from the mesh's own checkpoint.
#include <doctest/doctest.h>

#include <mutex>

#include <zeropp/parallel/parallelize.hpp>

#include "support/checkpoints.hpp"
#include "support/mesh_gpt.hpp"

using namespace test;

namespace {

const ThreadOptions limit{.limit = std::chrono::seconds(60)};

/// A device whose memory the host may not touch, as far as checkpoints look at it.
struct Remote {
  static constexpr bool cuda = true;
  int copies = 0;
  void upload(void* to, const void* from, std::size_t bytes) { ++copies, std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, std::size_t bytes) { upload(to, from, bytes); }
};

/// Tensors by name, put together from what all ranks hold; those who hold the same must agree.
class Whole {
 public:
  template <class T>
  void add(const std::string& name, const Parameter& p, std::span<const T> values, Range held) {
    const std::lock_guard lock(mutex_);
    auto& tensor = tensors_[name];
    auto& bytes = tensor.bytes;
    auto& seen = tensor.seen;
    const auto count = static_cast<std::size_t>(element_count(p.whole_shape()));
    bytes.resize(count * sizeof(T));
    seen.resize(count);
    p.for_each_run([&](std::int64_t whole, std::int64_t here, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = p.offset + here + i;
        if (at < held.begin || at >= held.end) continue;
        const auto to = static_cast<std::size_t>(whole + i);
        const auto* from = &values[static_cast<std::size_t>(at - held.begin)];
        agree_ = agree_ && (!seen[to] || std::memcmp(&bytes[to * sizeof(T)], from, sizeof(T)) == 0);
        std::memcpy(&bytes[to * sizeof(T)], from, sizeof(T));
        seen[to] = true;
      }
    });
  }
  /// All of them, named; empty where ranks disagree or nobody holds some element.
  std::string bytes() const {
    std::string all;
    for (auto& [name, tensor] : tensors_) {
      if (!agree_ || std::find(tensor.seen.begin(), tensor.seen.end(), false) != tensor.seen.end()) return {};
      all += name + tensor.bytes;
    }
    return all;
  }

 private:
  struct Tensor {
    std::string bytes;
    std::vector<bool> seen;
  };
  std::mutex mutex_;
  std::map<std::string, Tensor> tensors_;
  bool agree_ = true;
};

struct Session {
  std::string load = {}, save = {};  ///< folders; empty: neither
  int before = 0, after = 0;         ///< steps before the save and after it
};
struct Seen {
  std::string begin, end;  ///< bits of the state as it was loaded, and when it was saved
  std::string losses;      ///< of the steps after
};

template <class Model, class Adam>
void collect(Model& model, Adam& adam, Whole& into) {
  for (std::size_t u = 0; u < model.units().size(); ++u) {
    auto& unit = model.units()[u];
    for (auto* p : unit.parameters()) {
      const auto add = [&]<class T>(const char* kind, std::span<T> values, Range held) {
        into.add<T>(p->name + kind, *p, values, held);
      };
      add("/weight", unit.weights(), unit.held());
      if (!unit.masters().empty()) add("/masters", unit.masters(), unit.updated());
      add("/first_moment", adam.slot(0, u), unit.updated());
      add("/second_moment", adam.slot(1, u), unit.updated());
    }
  }
}

template <class P>
Seen run(Stage stage, const Layout& layout, const Session& session) {
  const auto o = mesh_options();
  Whole begin, end;
  Seen seen;
  run_ranks(layout.ranks(), limit, [&](Comm world) {
    Cpu device;
    const Mesh mesh{world, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline}};
    auto part = parallelize(mesh, Plain{o.config},
                            {.schedule = layout.schedule,
                             .chunks = layout.chunks,
                             .sequence_parallel = layout.sequence_parallel,
                             .width = o.config.width});
    ShardedEngine<decltype(part), P> model{
        mesh, device, std::move(part), stage, {.seed = session.load.empty() ? 7u : 8u}};
    FusedAdam adam{model, {}};
    if (!session.load.empty()) REQUIRE(Checkpoints{world, session.load}.resume(model, adam));
    collect(model, adam, begin);

    const auto rows = part_begin(o.rows, mesh.data().rank() + 1, mesh.data().size()) -
                      part_begin(o.rows, mesh.data().rank(), mesh.data().size());
    auto batch = Batch::on(device, rows, o.config.sequence);
    batch.first_sample = part_begin(o.rows, mesh.data().rank(), mesh.data().size());
    std::string losses;
    const auto train = [&](int steps) {
      for (int step = 0; step < steps; ++step) {
        const Random random(5, RandomPurpose::test, 0, static_cast<std::uint64_t>(model.step()));
        for (std::int64_t i = 0; i < batch.tokens.size(); ++i) {
          const auto at = static_cast<std::uint64_t>(batch.first_sample * o.config.sequence + i);
          batch.tokens.data()[i] = static_cast<std::int32_t>(random.bits(at) % 64);
          batch.labels.data()[i] = static_cast<std::int32_t>(random.bits(at + 1) % 64);
        }
        const auto loss = model.train(batch, {.micro_batches = o.micro_batches}).mean();
        const auto clip = clip_by_global_norm(model, 1.0f);
        adam.step(3e-3f, clip);
        losses += text(loss, " ", clip.norm(), "\n");
      }
    };
    train(session.before);
    if (!session.save.empty()) {
      Checkpoints store{world, session.save, {.naming = Naming::gpt2()}};
      store.save(model, adam, {.step = model.step()});
      collect(model, adam, end);
    }
    losses.clear();
    train(session.after);
    if (world.rank() == 0) seen.losses = losses;
  });
  seen.begin = begin.bytes();
  seen.end = end.bytes();
  return seen;
}

struct Place {
  Stage stage;
  Layout layout;
};
/// Every axis alone and together with the others, at all stages; between neighbours, and between any two, all change.
const Place places[] = {
    {Stage::none, {}},
    {Stage::parameters, {.data = 3}},
    {Stage::optimizer_states, {.data = 2, .tensor = 4}},
    {Stage::gradients, {.data = 2, .pipeline = 4}},
    {Stage::parameters, {.data = 2, .tensor = 2, .pipeline = 2, .sequence_parallel = true}},
    {Stage::none, {.tensor = 2, .pipeline = 2, .schedule = PipelineKind::zb_v, .chunks = 2}},
    {Stage::parameters, {.tensor = 4, .sequence_parallel = true}},
    {Stage::optimizer_states, {.data = 3, .pipeline = 2, .schedule = PipelineKind::interleaved, .chunks = 2}},
};

template <class P>
void any_to_any() {
  for (auto& from : places) {
    CAPTURE(&from - places);
    const Folder folder;
    const auto saved = run<P>(from.stage, from.layout, {.save = folder / "a", .before = 2});
    REQUIRE(!saved.end.empty());
    for (auto& to : places) {
      CAPTURE(&to - places);
      const Folder own;
      const auto loaded = run<P>(to.stage, to.layout, {.load = folder / "a", .save = own / "b", .after = 2});
      CHECK(loaded.begin == saved.end);
      CHECK(contents(own / "b/step-00000002/model.safetensors") ==
            contents(folder / "a/step-00000002/model.safetensors"));
      const auto resumed = run<P>(to.stage, to.layout, {.load = own / "b", .after = 2});
      CHECK(resumed.begin == saved.end);
      CHECK(resumed.losses == loaded.losses);
      CHECK(!loaded.losses.empty());
    }
  }
}

}  // namespace

TEST_CASE("fp32: a checkpoint of any mesh and stage loads on any other") { any_to_any<Fp32>(); }
TEST_CASE("bf16: the same, with remainders") { any_to_any<Bf16>(); }
TEST_CASE("fp16: the same, with whole masters") { any_to_any<Fp16>(); }
TEST_CASE("bf16 without masters: the same; tensor ranks round alike what they hold alike") {
  any_to_any<Bf16Stochastic>();
}

TEST_CASE("weights alone: exported from a mesh without padding, loaded on another with zeros there") {
  const auto o = mesh_options();
  const Folder folder;
  const auto with = [&](const Layout& layout, auto body) {
    run_ranks(layout.ranks(), limit, [&](Comm world) {
      Cpu device;
      const Mesh mesh{world, {.data = layout.data, .tensor = layout.tensor, .pipeline = layout.pipeline}};
      auto part = parallelize(mesh, Plain{o.config}, {.width = o.config.width});
      Sharded<decltype(part), Stage::parameters> model{mesh, device, std::move(part)};
      body(model);
    });
  };
  // 30 of 64 rows: of two tensor ranks the second holds padding only.
  const WeightsOptions options{.naming = Naming::gpt2(), .vocabulary = 30};
  const Layout layouts[] = {{}, {.tensor = 2}, {.data = 2, .pipeline = 2}, {.data = 2, .tensor = 2, .pipeline = 2}};
  for (auto& layout : layouts) {
    const auto first = folder / text("first", &layout - layouts), again = folder / text("again", &layout - layouts);
    with(layout, [&](auto& model) { save_weights(first, model, options); });
    CHECK(contents(first) == contents(folder / "first0"));
    with(layout, [&](auto& model) {
      load_weights(folder / "first0", model, options);
      save_weights(again, model, {.naming = Naming::gpt2()});
    });
    CHECK(contents(again) == contents(folder / "again0"));
  }
  Safetensors file(FileSystem::system(), folder / "again0");
  std::vector<float> rows(64 * 24);
  file.read(file.at("wte.weight"), 0, std::span{rows});
  CHECK(std::count(rows.begin(), rows.begin() + 30 * 24, 0.0f) == 0);
  CHECK(std::count(rows.begin() + 30 * 24, rows.end(), 0.0f) == 34 * 24);
}

TEST_CASE("faults on a mesh: a rank that cannot write, a bit flipped in any file, another model") {
  const auto o = mesh_options();
  const Layout layout{.tensor = 2, .pipeline = 2};
  const Folder folder;
  const auto with = [&](const Layout& on, const TinyConfig& config, auto body) {
    run_ranks(on.ranks(), limit, [&](Comm world) {
      Cpu device;
      const Mesh mesh{world, {.data = on.data, .tensor = on.tensor, .pipeline = on.pipeline}};
      auto part = parallelize(mesh, Plain{config}, {.width = config.width});
      Sharded<decltype(part), Stage::parameters> model{mesh, device, std::move(part)};
      FusedAdam adam{model, {}};
      body(world, model, adam);
    });
  };
  with(layout, o.config, [&](const Comm& world, auto& model, auto& adam) {
    Checkpoints store{world, folder.path()};
    store.save(model, adam, {.step = 1});
    store.save(model, adam, {.step = 2});
  });
  for (int broken = 0; broken < layout.ranks(); ++broken)
    for (long at : {0, 1}) {
      with(layout, o.config, [&](const Comm& world, auto& model, auto& adam) {
        FaultyFileSystem files;
        files.only = at ? "fsync" : "write";
        files.at = 0;
        files.error = ENOSPC;
        Checkpoints store{world, folder.path(), {.files = &files}};
        files.log.clear();
        if (world.rank() == broken) files.fault = FaultyFileSystem::Fault::error;
        const auto sentence = sentence_of([&] { store.save(model, adam, {.step = 3}); });
        CHECK(contains(sentence, text("rank ", broken, ": ")));
        CHECK(contains(sentence, "No space left on device"));
      });
      CHECK(names(folder.path()) == std::vector<std::string>{".lock", "latest", "step-00000001", "step-00000002"});
    }

  const auto step = folder / "step-00000002";
  for (auto& name : names(step)) {
    const auto path = step + "/" + name, good = contents(path);
    auto bad = good;
    bad[bad.size() / 2] ^= 1;
    put(path, bad);
    with({.data = 2}, o.config, [&](const Comm& world, auto& model, auto& adam) {
      const auto found = Checkpoints{world, folder.path()}.resume(model, adam);
      REQUIRE(found);
      CHECK(found->step == 1);
      CHECK(contains(found->refused.at(0), name));
    });
    put(path, good.substr(0, good.size() - 2));
    with({.pipeline = 2}, o.config, [&](const Comm& world, auto& model, auto& adam) {
      CHECK(Checkpoints{world, folder.path()}.resume(model, adam)->step == 1);
    });
    put(path, good);
  }

  auto deeper = o.config;
  deeper.layers = 5;
  with({.data = 2, .pipeline = 2}, deeper, [&](const Comm& world, auto& model, auto& adam) {
    Checkpoints store{world, folder.path()};
    CHECK(contains(sentence_of([&] { store.resume(model, adam); }),
                   "of another model: it has ln_f.weight of shape [24] where the model has h.4.ln_1.weight"));
    Checkpoints alone{Comm{}, folder / text("rank", world.rank())};
    CHECK(contains(sentence_of([&] { alone.save(model, adam, {}); }), "kept by 1 ranks, but 4 hold the model"));
  });
}

TEST_CASE("what the host may not touch is read and written through a buffer, the rest in place") {
  std::vector<float> values{1, 2, 3}, buffer;
  Cpu host;
  Remote remote;
  CHECK(detail::on_host(host, std::span<const float>{values}, buffer).data() == values.data());
  const auto copy = detail::on_host(remote, std::span<const float>{values}, buffer);
  CHECK(copy.data() == buffer.data());
  CHECK(buffer == values);
  const auto fill = [](float value) {
    return [value](std::span<float> out) { std::fill(out.begin(), out.end(), value); };
  };
  detail::fill_from_host(host, std::span{values}.first(2), buffer, fill(7));
  CHECK(values == std::vector<float>{7, 7, 3});
  detail::fill_from_host(remote, std::span{values}.last(2), buffer, fill(8));
  CHECK(values == std::vector<float>{7, 8, 8});
  CHECK(remote.copies == 2);
}

TEST_CASE("optimizer pieces that overlap, leave holes or reach too far are refused") {
  using Pieces = std::vector<std::pair<std::string, std::int64_t>>;  // place, elements
  const auto check = [](std::vector<std::int64_t> shape, const Pieces& pieces) {
    const Folder folder;
    auto& files = FileSystem::system();
    const auto count = static_cast<std::int64_t>(pieces.size());
    for (std::int64_t i = 0; i < count; ++i) {
      const auto& [place, elements] = pieces[static_cast<std::size_t>(i)];
      SafetensorsWriter writer(files, folder.path(), Manifest::optimizer_file(i, count),
                               {{"p/momentum", DType::f32, {elements}}}, {{"p", place}});
      const std::vector<float> values(static_cast<std::size_t>(elements));
      writer.append(std::span<const float>{values});
      writer.finish();
    }
    return sentence_of([&] {
      OptimizerFiles(files, folder.path(), count, {{"p", shape}}).check<float>("p/momentum", shape);
    });
  };
  CHECK(check({4}, {{"0", 2}, {"2", 2}}) == "no error");
  CHECK(check({4, 2}, {{"0 1 0 1", 4}, {"2 1 1 2", 2}, {"0 1 1 2", 2}}) == "no error");
  CHECK(check({6}, {{"0 0 0 1 4 6", 3}, {"0 0 1 4", 3}}) == "no error");
  CHECK(contains(check({4}, {{"0", 2}, {"1", 2}}), "begins at element 1, expected 2"));
  CHECK(contains(check({4}, {{"0", 2}, {"3", 1}}), "hold 3 of 4 elements of p/momentum"));
  CHECK(contains(check({4}, {{"2", 4}}), "does not say where p/momentum begins"));
  CHECK(contains(check({4}, {{"0", 4}, {"9223372036854775807", 1}}), "does not say where p/momentum begins"));
  CHECK(contains(check({4, 2}, {{"0 1 0 1", 4}, {"0 1 0 2", 4}}), "begins at element 0, expected 1"));
  CHECK(contains(check({4, 2}, {{"0 0 0 2", 4}, {"0 1 0 1", 4}}), "is cut along other axes"));
  CHECK(contains(check({4, 2}, {{"0 0 0 1", 2}, {"0 1 0 1", 2}, {"0 1 1 2", 4}}), "begins at element 0, expected 2"));
  CHECK(contains(check({4}, {{"0 4 0 1", 1}}), "does not say where"));
}

TEST_CASE("a place of a piece is read as it is written; others are refused") {
  const std::vector<std::int64_t> shape{6, 4};
  for (auto& part : {Slice{shape, 0, {{0, 2}, {4, 5}}, 2}, Slice{shape, 1, {{1, 3}}, 2}, all_of(shape)}) {
    const auto place = place_from(place_text(part, 3), shape);
    REQUIRE(place);
    CHECK(place->first.axis == part.axis);
    CHECK(place->first.ranges == part.ranges);
    CHECK(place->second == 3);
  }
  CHECK(place_text(all_of({}), 0) == "0");
  for (auto words : {"", "x", "-1", "1 ", "1 0", "1 0 2", "1 2 0 1", "1 0 3 2", "1 0 0 7", "1 0 0 1 2", "1,0",
                     "99999999999999999999"})
    CHECK_MESSAGE(!place_from(words, shape), words);
  // The common elements of two parts, one by one.
  const Slice a{shape, 0, {{1, 3}, {5, 6}}, 2}, b{shape, 1, {{0, 1}, {2, 4}}, 2};
  std::vector<std::int64_t> where(24, -1);
  b.for_each_run({0, count_of(b)}, [&](std::int64_t whole, std::int64_t here, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) where[static_cast<std::size_t>(whole + i)] = here + i;
  });
  for (std::int64_t begin = 0; begin < count_of(a); ++begin)
    for (std::int64_t first = 0; first < count_of(b); ++first) {
      const Range mine{begin, count_of(a)}, theirs{first, count_of(b) - 1};
      std::vector<std::int64_t> expected(12, -1), found(12, -1);
      a.for_each_run(mine, [&](std::int64_t whole, std::int64_t here, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) {
          const auto there = where[static_cast<std::size_t>(whole + i)];
          if (there >= theirs.begin && there < theirs.end) expected[static_cast<std::size_t>(here + i)] = there;
        }
      });
      for_each_common_run(a, mine, b, theirs, [&](std::int64_t here, std::int64_t there, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) found[static_cast<std::size_t>(here + i)] = there + i;
      });
      CHECK(found == expected);
    }
}
