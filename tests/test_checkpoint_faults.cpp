// SPDX-License-Identifier: Apache-2.0
// Saves that die or fail at any system call, files that are cut or flipped anywhere, hostile names, two runs in one
// folder: the last complete checkpoint always loads, with its bits, and what was passed over is said.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include "support/checkpoints.hpp"

using namespace test;

namespace {

using One = Run<Stage::none>;
const ThreadOptions limit{.limit = std::chrono::seconds(20)};

/// A folder with the checkpoints of steps 1 and 2 and the bits of both.
struct Prepared {
  Folder folder;
  std::string bits[3];

  explicit Prepared(const std::string& below = "out") : path(folder / below) {
    One run{Comm{}};
    Checkpoints store{Comm{}, path};
    for (int step : {1, 2}) {
      run.train(1).save(store, {.step = step});
      bits[step] = run.bits();
    }
  }
  std::string path;
  std::string in(int step, const std::string& file) const {
    return path + "/" + CheckpointStore::name_of(step) + "/" + file;
  }
};

bool leftovers(const std::string& folder) {
  for (auto& name : names(folder))
    if (name.starts_with(".") && name != ".lock") return true;
  return false;
}

/// The step that auto takes; its bits are compared.
std::int64_t resumed_step(const std::string& folder, const std::string (&bits)[4]) {
  One run{Comm{}, 77};
  Checkpoints store{Comm{}, folder};
  const auto resumed = run.resume(store);
  REQUIRE(resumed);
  CHECK(run.bits() == bits[resumed->step]);
  CHECK(resumed->refused.empty());
  return resumed->step;
}

}  // namespace

TEST_CASE("kill -9 at every system call of a save: the last complete checkpoint loads with its bits") {
  // A new step, and one that is there already: that one is replaced.
  for (std::int64_t step : {3, 2}) {
    CAPTURE(step);
    const Prepared prepared;
    One run{Comm{}};
    run.train(3);
    std::string bits[4]{"", prepared.bits[1], prepared.bits[2], run.bits()};
    int calls = 0;
    bool committed = false;
    for (long at = 0;; ++at) {
      CAPTURE(at);
      const Folder copy;
      fs::copy(prepared.path, copy / "out", fs::copy_options::recursive);
      const auto child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {  // nothing of the test's own may run here
        FaultyFileSystem files;
        files.fault = FaultyFileSystem::Fault::kill;
        files.at = at;
        try {
          One dying{Comm{}};
          Checkpoints store{Comm{}, copy / "out", {.keep = 1, .files = &files}};
          dying.resume(store, "step-00000002");
          if (step == 3) dying.train(1);
          dying.save(store, {.step = step});
        } catch (...) {
          ::_exit(1);
        }
        ::_exit(0);
      }
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      if (WIFEXITED(status)) {
        CHECK(WEXITSTATUS(status) == 0);
        break;
      }
      CHECK(WTERMSIG(status) == SIGKILL);
      ++calls;
      const auto found = resumed_step(copy / "out", bits);
      CHECK((found == step || (found == 2 && !committed)));
      committed |= found == 3;
      One again{Comm{}};
      Checkpoints store{Comm{}, copy / "out"};
      again.resume(store);
      again.save(store, {.step = 4});
      CHECK(!leftovers(copy / "out"));
    }
    CHECK(calls > 50);
    if (step == 3) CHECK(committed);
    MESSAGE("killed at each of ", calls, " system calls");
  }
}

TEST_CASE("kill -9 of two ranks at every system call of one of them") {
  for (int victim : {0, 1}) {
    CAPTURE(victim);
    const Prepared prepared;
    One reference{Comm{}};
    reference.train(3);
    std::string bits[4]{"", prepared.bits[1], prepared.bits[2], reference.bits()};
    for (long at = 0;; at += victim == 0 ? 3 : 1) {
      CAPTURE(at);
      const Folder copy;
      fs::copy(prepared.path, copy / "out", fs::copy_options::recursive);
      const auto child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        try {
          run_ranks(2, limit, [&](Comm comm) {
            FaultyFileSystem files;
            if (comm.rank() == victim) files.fault = FaultyFileSystem::Fault::kill, files.at = at;
            Run<Stage::parameters> dying(comm);
            Checkpoints store{comm, copy / "out", {.files = &files}};
            dying.resume(store);
            dying.train(1).save(store, {.step = 3});
          });
        } catch (...) {
          ::_exit(1);
        }
        ::_exit(0);
      }
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      if (WIFEXITED(status)) {
        CHECK(WEXITSTATUS(status) == 0);
        CHECK(resumed_step(copy / "out", bits) == 3);
        break;
      }
      CHECK(resumed_step(copy / "out", bits) >= 2);
    }
  }
}

TEST_CASE("each error at every system call of a save: reported, nothing half done, nothing lost, tidy after the next") {
  const Prepared prepared;
  One reference{Comm{}};
  reference.train(3);
  std::string bits[4]{"", prepared.bits[1], prepared.bits[2], reference.bits()};
  for (int error : {ENOSPC, EIO, EACCES})
    for (std::int64_t step : {3, 2}) {
      CAPTURE(error);
      CAPTURE(step);
      int reported = 0;
      for (long at = 0;; ++at) {
        CAPTURE(at);
        const Folder copy;
        fs::copy(prepared.path, copy / "out", fs::copy_options::recursive);
        One run{Comm{}};
        FaultyFileSystem files;
        std::vector<std::string> warnings;
        const CheckpointOptions options{
            .keep = 1, .warn = [&](const std::string& w) { warnings.push_back(w); }, .files = &files};
        bool failed = false;
        {
          Checkpoints store{Comm{}, copy / "out", options};
          run.resume(store);
          if (step == 3) run.train(1);
          files.log.clear();
          files.at = at;
          files.error = error;
          files.fault = FaultyFileSystem::Fault::error;
          const auto before = run.bits();
          try {
            run.save(store, {.step = step});
          } catch (const DataError& e) {
            failed = true;
            CHECK(contains(e.what(), std::generic_category().message(error)));
            CHECK(contains(e.what(), copy / "out"));
          }
          files.fault = FaultyFileSystem::Fault::none;
          CHECK(run.bits() == before);
          if (static_cast<long>(files.log.size()) <= at) {  // the save has no such call any more
            CHECK(!failed);
            break;
          }
        }
        CHECK((failed || warnings.size() == 1));  // only the removal of old ones is a warning
        reported += failed;
        const auto found = resumed_step(copy / "out", bits);
        CHECK((found == step || (failed && found == 2)));
        One again{Comm{}};
        Checkpoints store{Comm{}, copy / "out"};
        again.resume(store);
        again.save(store, {.step = 4});  // training goes on, the next save does
        CHECK(!leftovers(copy / "out"));
      }
      CHECK(reported > 40);
    }
}

TEST_CASE("folders that cannot be exchanged are replaced in two steps, and a death between them is made good") {
  const Prepared prepared;
  std::string bits[4]{"", prepared.bits[1], prepared.bits[2], ""};
  for (int error : {EINVAL, ENOSYS})
    for (int death : {0, 1, 2}) {  // none, or at the first or second rename
      CAPTURE(death);
      const Folder copy;
      fs::copy(prepared.path, copy / "out", fs::copy_options::recursive);
      struct NoExchange : FaultyFileSystem {
        int refusal = 0, die_at = 0, renames = 0;
        long intercept(const SystemCall& call, const Run& run) override {
          if (call.name == "renameat2") {
            errno = refusal;
            return -1;
          }
          if (call.name == "rename" && ++renames == die_at) {
            errno = EIO;
            return -1;
          }
          return FaultyFileSystem::intercept(call, run);
        }
      } files;
      files.refusal = error;
      files.die_at = death;
      One run{Comm{}};
      {
        Checkpoints store{Comm{}, copy / "out", {.keep = 1, .files = &files}};
        run.resume(store);
        const auto result = sentence_of([&] { run.save(store, {.step = 2}); });
        CHECK((result == "no error") == (death == 0));
      }
      CHECK(resumed_step(copy / "out", bits) == 2);
      // A death with the old one moved away:
      fs::rename(copy / "out/step-00000002", copy / "out/.replaced-step-00000002");
      CHECK(resumed_step(copy / "out", bits) == 2);
      CHECK(!leftovers(copy / "out"));
    }
}

TEST_CASE("all that a checkpoint holds is synced before it appears, its names after") {
  const Folder folder;
  FaultyFileSystem files;
  One run{Comm{}};
  Checkpoints store{Comm{}, folder.path(), {.files = &files}};
  run.save(store, {.step = 1});
  const auto temporary = folder / ".tmp-step-00000001";
  const auto at = [&](const std::string& what) {
    const auto found = std::find(files.log.begin(), files.log.end(), what);
    CHECK_MESSAGE(found != files.log.end(), what);
    return found - files.log.begin();
  };
  const auto last = [&](const std::string& what) { return std::find(files.log.rbegin(), files.log.rend(), what); };
  const auto appears = at("rename " + temporary);
  for (auto& file : names(folder / "step-00000001")) {
    const auto path = temporary + "/" + file;
    CHECK(files.log.rend() - last("write " + path) <= at("fsync " + path));
    CHECK(at("fsync " + path) < appears);
  }
  CHECK(at("fsync " + temporary) < appears);
  CHECK(at("fsync " + folder.path()) > appears);
  const auto latest = folder / ".tmp-latest";
  CHECK(at("write " + latest) > at("fsync " + folder.path()));
  CHECK(at("fsync " + latest) < at("rename " + latest));
  CHECK(files.log.rend() - last("fsync " + folder.path()) > at("rename " + latest));
}

TEST_CASE("an error on one rank is the error of all, with its rank") {
  for (int victim : {0, 1, 2}) {
    CAPTURE(victim);
    const Folder folder;
    run_ranks(3, limit, [&](Comm comm) {
      FaultyFileSystem files;
      Run<Stage::parameters, Bf16> run(comm);
      Checkpoints store{comm, folder.path(), {.files = &files}};
      run.train(1).save(store, {.step = 1});
      const auto bits = run.bits();
      if (comm.rank() == victim) {
        files.log.clear();
        files.only = "write";
        files.at = 0;
        files.error = ENOSPC;
        files.fault = FaultyFileSystem::Fault::error;
      }
      const auto error = sentence_of([&] { run.train(1).save(store, {.step = 2}); });
      CHECK(contains(error, text("rank ", victim, ": write of ")));
      CHECK(contains(error, "No space left on device; free some space there or choose another folder"));
      files.fault = FaultyFileSystem::Fault::none;
      if (comm.rank() == 0) CHECK(names(folder.path()) == std::vector<std::string>{".lock", "latest", "step-00000001"});
      CHECK(run.resume(store)->step == 1);
      CHECK(run.bits() == bits);
      run.train(1).save(store, {.step = 2});
      CHECK(run.resume(store)->step == 2);
    });
  }
}

TEST_CASE("a checkpoint cut at any byte, or with any bit changed, is refused by name and the one before is used") {
  const Prepared prepared;
  One run{Comm{}};
  std::vector<std::string> said;
  Checkpoints store{Comm{}, prepared.path, {.warn = [&](const std::string& w) { said.push_back(w); }}};
  const auto good = run.resume(store);
  REQUIRE(good->step == 2);
  const auto refused_with = [&](const std::string& file) {
    said.clear();
    One fresh{Comm{}, 5};
    const auto resumed = fresh.resume(store);
    REQUIRE(resumed);
    CHECK_MESSAGE(resumed->step == 1, file);
    CHECK(fresh.bits() == prepared.bits[1]);
    REQUIRE(said.size() == 1);
    CHECK(resumed->refused == said);
    CHECK(said[0].starts_with("step-00000002 refused: "));
    CHECK(said[0].ends_with("; using step-00000001"));
    CHECK_MESSAGE(contains(said[0], file), said[0]);
    return said[0];
  };
  const Random random(3, RandomPurpose::test);
  for (auto& file : names(prepared.in(2, ""))) {
    CAPTURE(file);
    const auto path = prepared.in(2, file), whole = contents(path);
    // Every byte of the small files; every few of the others, another bit each time.
    const std::size_t stride = whole.size() < 300 ? 1 : whole.size() / 150;
    for (std::size_t at = 0; at < whole.size(); at += stride) {
      put(path, whole.substr(0, at));
      refused_with(file);
      auto flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ 1 << random.bits(at) % 8);
      put(path, flipped);
      refused_with(file);
    }
    put(path, whole + "x");
    refused_with(file);
    fs::remove(path);
    CHECK(contains(refused_with(file), "No such file"));
    put(path, whole);
  }
  CHECK(run.resume(store)->step == 2);

  // The sentence names the tensor.
  for (auto& file : {std::string("model.safetensors"), Manifest::optimizer_file(0, 1)}) {
    const auto path = prepared.in(2, file), whole = contents(path);
    Safetensors tensors(FileSystem::system(), path);
    for (auto& tensor : tensors.tensors()) {
      if (tensor.count() == 0) continue;
      auto flipped = whole;
      flipped[static_cast<std::size_t>(tensor.end - 1)] ^= 1;
      put(path, flipped);
      CHECK(contains(refused_with(file), "checksum of tensor " + tensor.name + " in "));
    }
    auto flipped = whole;
    flipped[12] ^= 1;
    put(path, flipped);
    CHECK(contains(refused_with(file), "checksum of the header of "));
    put(path, whole);
  }

  // Both damaged: nothing is loaded, never a fresh start in silence.
  for (int step : {1, 2}) fs::resize_file(prepared.in(step, "state.json"), 3);
  const auto before = run.bits();
  const auto error = sentence_of([&] { run.resume(store); });
  CHECK(contains(error, "no checkpoint in " + prepared.path + " can be used: step-00000002 refused: "));
  CHECK(contains(error, "step-00000001 refused: "));
  CHECK(run.bits() == before);
}

TEST_CASE("damage of latest is said, and the newest is used") {
  const Prepared prepared;
  One run{Comm{}};
  Checkpoints store{Comm{}, prepared.path};
  for (auto content : {"", "step-", "../step-00000001", "/etc", "step-00000009\n", "step-0000000x", "step-000000001"}) {
    CAPTURE(content);
    put(prepared.path + "/latest", content);
    const auto resumed = run.resume(store);
    CHECK(resumed->step == 2);
    CHECK(resumed->refused.size() == 1);
  }
}

TEST_CASE("every rank takes the same checkpoint, though only one sees the damage") {
  const Folder folder;
  run_ranks(3, limit, [&](Comm comm) {
    FaultyFileSystem files;
    Run<Stage::parameters> run(comm);
    Checkpoints store{comm, folder.path(), {.files = &files}};
    run.train(1).save(store, {.step = 1});
    const auto bits = run.bits();
    run.train(1).save(store, {.step = 2});
    if (comm.rank() == 2) files.fault = FaultyFileSystem::Fault::error, files.at = static_cast<long>(files.log.size());
    files.error = EIO;
    const auto resumed = run.resume(store);
    CHECK(resumed->step == 1);
    CHECK(contains(resumed->refused.at(0), "rank 2") == false);  // the sentence names the file
    CHECK(contains(resumed->refused.at(0), "Input/output error"));
    CHECK(run.bits() == bits);
  });
}

TEST_CASE("hostile names in a manifest, links, pipes and folders in place of files are refused") {
  const Prepared prepared;
  One run{Comm{}};
  Checkpoints store{Comm{}, prepared.path};
  const auto path = prepared.in(2, "manifest.json"), good = contents(path);
  const auto refusal = [&] {
    const auto resumed = run.resume(store);
    CHECK(resumed->step == 1);
    return resumed->refused.at(0);
  };
  // With a correct checksum, as somebody who means it would write it.
  const auto forge = [&](auto change) {
    auto json = nlohmann::json::parse(good);
    change(json["checkpoint"]);
    json["xxh3"] = checksum_text(Checksum::of(json["checkpoint"].dump()));
    put(path, json.dump());
    return refusal();
  };
  for (auto name : {"../step-00000001/model.safetensors", "/etc/passwd", "", ".", "..", "model.safetensors/", "x"}) {
    CHECK(contains(forge([&](auto& m) { m["files"][2]["name"] = name; }), text("names the file ", name, " where")));
  }
  CHECK(contains(forge([](auto& m) { m["format"] = 4; }), "format 4, this library reads up to 3"));
  CHECK(contains(forge([](auto& m) { m["mesh"]["tensor"] = 0; }), "are 0 tensor x 1 pipeline ranks"));
  CHECK(contains(forge([](auto& m) { m["mesh"]["pipeline"] = 1ull << 62; }), "they cannot be"));
  CHECK(contains(forge([](auto& m) { m["ranks"] = 1000000000; }), "files for 1000000000 ranks"));
  CHECK(contains(forge([](auto& m) { m["ranks"] = 0; }), "files for 0 ranks"));
  CHECK(contains(forge([](auto& m) { m["ranks"] = -1; }), "must be an integer"));
  CHECK(contains(forge([](auto& m) { m.erase("files"); }), "lacks the member \"files\""));
  CHECK(contains(forge([](auto& m) { m["files"] = 1; }), "must be an array"));
  CHECK(contains(forge([](auto& m) { m["files"][2]["tensors"][0]["end"] = 1ull << 62; }), "lies outside of"));
  CHECK(contains(forge([](auto& m) { m["files"][2]["xxh3"] = "zz"; }), "is no checksum"));
  CHECK(contains(forge([](auto& m) { m["parameters"][0]["shape"][0] = "7"; }), "no list of sizes"));
  CHECK(contains(forge([](auto& m) { m = nlohmann::json::array(); }), "lacks the member"));
  CHECK(contains(sentence_of([&] { forge([](auto& m) { m["naming"] = "other"; }); }),
                 "naming of tensors is called other"));
  put(path, good);

  const auto state = prepared.in(2, "state.json");
  const auto kept = prepared.folder / "elsewhere";
  fs::rename(state, kept);
  fs::create_symlink(kept, state);
  CHECK(contains(refusal(), "a symbolic link is not followed here"));
  fs::remove(state);
  fs::create_directory(state);
  CHECK(contains(refusal(), "not a regular file"));
  fs::remove(state);
  REQUIRE(::mkfifo(state.c_str(), 0600) == 0);
  CHECK(contains(refusal(), "not a regular file"));
  fs::remove(state);
  fs::rename(kept, state);
  CHECK(run.resume(store)->step == 2);
}

TEST_CASE("a second run in the same folder is refused with the process that holds it") {
  const Folder folder;
  const auto second = [&] { return sentence_of([&] { Checkpoints{Comm{}, folder / "a/b/c"}; }); };
  {
    Checkpoints store{Comm{}, folder / "a/b/c"};
    const auto error = second();
    CHECK(contains(error, text("are being written by process ", ::getpid(), " on ")));
    CHECK(contains(error, "end that run or choose another folder"));
    Checkpoints beside{Comm{}, folder / "a/b/d"};
  }
  CHECK(second() == "no error");
  run_ranks(2, limit, [&](Comm comm) {  // one run of two ranks, then another one
    Checkpoints store{comm, folder / "a/b/c"};
    CHECK(contains(sentence_of([&] { Checkpoints{comm, folder / "a/b/c"}; }), "rank 0: checkpoints in "));
  });
  // A process that died holds nothing.
  const auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Checkpoints store{Comm{}, folder / "a/b/c"};
    ::raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(second() == "no error");
  put(folder / "file", "");
  CHECK(contains(sentence_of([&] { Checkpoints{Comm{}, folder / "file"}; }), "Not a directory"));
}
