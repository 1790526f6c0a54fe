// SPDX-License-Identifier: Apache-2.0
// Safetensors written and read back; files that are truncated, flipped or hostile are refused and never crash.
#include <doctest/doctest.h>

#include <tuple>

#include "support/checkpoints.hpp"

using namespace test;

namespace {

std::string file_of(const std::string& header, const std::string& data = {}) {
  std::string out(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return out + header + data;
}

/// The error that opening a file of these bytes gives.
std::string refusal(const std::string& bytes) {
  const Folder folder;
  put(folder / "t.safetensors", bytes);
  return sentence_of([&] { Safetensors{FileSystem::system(), folder / "t.safetensors"}; });
}
std::string header_refusal(const std::string& header, std::size_t data = 8) {
  return refusal(file_of(header, std::string(data, 'x')));
}

const std::vector<float> some{1.5f, -2.0f, 3.25f, 0.0f, -0.0f, 1e30f};

void write_small(FileSystem& files, const std::string& folder) {
  SafetensorsWriter writer(files, folder, "t.safetensors",
                           {{"a", DType::f32, {2, 3}},
                            {"nothing", DType::f32, {0, 4}},
                            {"b", DType::bf16, {3}},
                            {"scalar", DType::f64, {}},
                            {"c", DType::i16, {2}},
                            {"h", DType::f16, {2}}},
                           {{"format", "pt"}});
  writer.append(std::span<const float>{some}.first(2));
  writer.append(std::span<const float>{some}.subspan(2));
  const std::vector<bf16> b{bf16(1.0f), bf16(-0.5f), bf16(100.0f)};
  writer.append(std::span<const bf16>{b});
  const double d = 0.1;
  writer.append(std::span<const double>{&d, 1});
  const std::vector<std::int16_t> c{-32768, 32767};
  writer.append(std::span<const std::int16_t>{c});
  const std::vector<f16> h{f16(1.5f), f16(-0x1p-24f)};
  writer.append(std::span<const f16>{h});
  writer.finish();
}

}  // namespace

TEST_CASE("tensors are read back as they were written, in ranges and as wider types") {
  const Folder folder;
  write_small(FileSystem::system(), folder.path());
  const auto bytes = contents(folder / "t.safetensors");
  CHECK(static_cast<unsigned char>(bytes[0]) % 8 == 0);
  Safetensors file(FileSystem::system(), folder / "t.safetensors");
  CHECK(file.tensors().size() == 6);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.at("a").shape == std::vector<std::int64_t>{2, 3});
  CHECK(file.at("nothing").count() == 0);
  CHECK(file.at("scalar").shape.empty());
  std::vector<float> a(6), middle(3), b(3);
  file.read(file.at("a"), 0, std::span{a});
  CHECK(std::memcmp(a.data(), some.data(), 24) == 0);
  file.read(file.at("a"), 2, std::span{middle});
  CHECK(middle[0] == some[2]);
  file.read(file.at("b"), 0, std::span{b});
  CHECK(b == std::vector<float>{1.0f, -0.5f, 100.0f});
  std::vector<double> wide(6);
  file.read(file.at("a"), 0, std::span{wide});
  CHECK(wide[5] == static_cast<double>(1e30f));
  std::vector<std::int16_t> c(2);
  file.read(file.at("c"), 0, std::span{c});
  CHECK(c[0] == -32768);
  CHECK(file.at("h").type.name == "F16");
  file.read(file.at("h"), 0, std::span{b}.first(2));
  CHECK(b == std::vector<float>{1.5f, -0x1p-24f, 100.0f});

  CHECK(contains(sentence_of([&] { file.read(file.at("a"), 5, std::span{middle}); }), "elements 5 to 8"));
  CHECK(contains(sentence_of([&] { file.read(file.at("a"), -1, std::span{middle}); }), "elements -1"));
  CHECK(contains(sentence_of([&] { file.read(file.at("scalar"), 0, std::span{a}.first(1)); }), "not hold exactly"));
  CHECK(contains(sentence_of([&] { file.at("z"); }), "holds no tensor z"));
}

TEST_CASE("the writer keeps to what it announced") {
  const Folder folder;
  auto& files = FileSystem::system();
  const std::vector<float> two(2);
  SafetensorsWriter writer(files, folder.path(), "x", {{"a", DType::f32, {1}}, {"b", DType::f32, {1}}});
  CHECK(contains(sentence_of([&] { writer.append(std::span<const float>{two}); }), "more bytes"));
  writer.append(std::span<const float>{two}.first(1));
  CHECK(contains(sentence_of([&] { writer.finish(); }), "before tensor b"));
  CHECK(contains(sentence_of([&] {
                   SafetensorsWriter(files, folder.path(), "y", {{"a", DType::f32, {1}}, {"a", DType::f32, {1}}});
                 }),
                 "two tensors called a"));
  CHECK(contains(sentence_of([&] {
                   SafetensorsWriter(files, folder.path(), "y", {{"\xff", DType::f32, {1}}});
                 }),
                 "UTF-8"));
  CHECK(contains(sentence_of([&] {
                   SafetensorsWriter(files, folder.path(), "y", {{"a", DType::f32, {1ll << 62}}});
                 }),
                 "63 bits"));
  CHECK(contains(
      sentence_of([&] {
        SafetensorsWriter(files, folder.path(), "y", {{"a", DType::f32, {1ll << 60}}, {"b", DType::f32, {1ll << 60}}});
      }),
      "2^63"));
  CHECK(!fs::exists(folder / "y"));
}

TEST_CASE("each kind of broken header is refused with its sentence") {
  const auto f32 = [](const std::string& offsets, const std::string& shape = "[2]") {
    return R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  CHECK(header_refusal("{\"a\":" + f32("[0,8]") + "}") == "no error");
  CHECK(header_refusal("{\"a\":" + f32("[0,8]") + "}   ") == "no error");
  CHECK(contains(refusal(""), "truncated"));
  CHECK(contains(refusal("1234567"), "truncated"));
  CHECK(contains(refusal(std::string(8, '\xff') + "{}"), "safetensors allow 100000000"));
  CHECK(contains(refusal(file_of("{}").replace(0, 1, "\x03")), "truncated"));
  CHECK(contains(refusal(file_of("")), "does not begin with {"));
  CHECK(contains(header_refusal(" {}"), "does not begin with {"));
  CHECK(contains(header_refusal("{"), "not valid JSON"));
  CHECK(contains(header_refusal("{}x"), "not valid JSON"));
  CHECK(contains(header_refusal("{\"\xff\":" + f32("[0,8]") + "}"), "UTF-8"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + ",\"a\":" + f32("[0,8]") + "}"), "\"a\" twice"));
  CHECK(contains(header_refusal(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})"), "twice"));
  CHECK(contains(header_refusal(R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})"), "unknown dtype F33"));
  CHECK(contains(header_refusal(R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})"), "must be a string"));
  CHECK(contains(header_refusal(R"({"a":{"shape":[2],"data_offsets":[0,8]}})"), "lacks the member \"dtype\""));
  CHECK(contains(header_refusal(R"({"a":[]})"), "lacks the member"));
  CHECK(contains(header_refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})"), "members beside"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,4]") + "}"), "needs 8 bytes"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[8,0]") + "}"), "needs 8 bytes"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8,8]") + "}"), "needs 8 bytes"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[-8,0]") + "}"), "integers from 0"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8.0]") + "}"), "integers from 0"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,18446744073709551615]") + "}"), "integers from 0"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]", "[-2]") + "}"), "integers from 0"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]", "[4611686018427387904,2]") + "}"), "63 bits"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]", "[4294967296,4294967296]") + "}"), "63 bits"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,0]", "[9223372036854775807,0,9]") + "}", 0), "63 bits"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + ",\"b\":" + f32("[4,12]") + "}", 12),
                 "inside the one before"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + ",\"b\":" + f32("[0,8]") + "}"), "inside the one before"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + ",\"b\":" + f32("[12,20]") + "}", 20), "after a hole"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[4,12]") + "}", 12), "after a hole"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + "}", 7), "truncated"));
  CHECK(contains(header_refusal("{\"a\":" + f32("[0,8]") + "}", 9), "1 bytes follow"));
  CHECK(contains(header_refusal(R"({"__metadata__":{"a":1}})", 0), "must be a string"));
  CHECK(contains(header_refusal(R"({"__metadata__":[]})", 0), "must be an object"));
  CHECK(
      contains(header_refusal("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"), "nests deeper"));
  CHECK(contains(sentence_of([] { Safetensors{FileSystem::system(), "/"}; }), "not a regular file"));
  CHECK(contains(sentence_of([] { Safetensors{FileSystem::system(), "/nowhere/x"}; }), "No such file"));
}

TEST_CASE("a file of another kind is named, with what to do") {
  using namespace std::string_literals;
  const std::string rest(100, 'x');
  for (const auto& [begin, name, advice] :
       {std::tuple{"version https://git-lfs.github.com/spec/v1\noid sha256:"s, "a Git LFS pointer", "git lfs pull"},
        {"PK\3\4\0\0\0\0"s, "a zip archive", "safetensors.torch.save_file"},
        {"\x80\2\x8a\x0al\xfc\x9c"s, "a pickle of torch.save", "safetensors.torch.save_file"},
        {"\xc6\xd7\x34\x01\x03\0\0\0"s, "a model file of llm.c", "safetensors"},
        {"\x88\xd8\x34\x01\x01\0\0\0"s, "a token file of llm.c", "--data"},
        {"\x93NUMPY\1\0"s, "a NumPy array", "safetensors"},
        {"GGUF\3\0\0\0"s, "a GGUF model", "safetensors"},
        {"\x89HDF\r\n\x1a\n"s, "an HDF5 file", "safetensors"},
        {"<!DOCTYPE html><html>"s, "a page of HTML", "download the file again"},
        {"{\n  \"metadata\": {}, \"weight_map\": {"s, "an index of weights", "give its folder"},
        {"{\"version\": \"1.0\", \"truncation\": null, \"padding\": null"s, "a tokenizer", "model.safetensors"},
        {"{\"model_type\": \"gpt2\""s, "JSON", "model.safetensors"}}) {
    const auto sentence = refusal(begin + rest);
    CHECK_MESSAGE(contains(sentence, name + ""s), sentence);
    CHECK_MESSAGE(contains(sentence, "not safetensors; "), sentence);
    CHECK_MESSAGE(contains(sentence, advice + ""s), sentence);
  }
}

TEST_CASE("weights are found by file, index, folder and the cache of the hub") {
  const Folder folder;
  auto& files = FileSystem::system();
  const auto found = [&](const std::string& path) { return find_weights(files, folder / path).file; };
  const auto snapshot = folder / "models--o--m/snapshots/abc";
  fs::create_directories(snapshot);
  fs::create_directories(folder / "models--o--m/blobs");
  fs::create_directories(folder / "models--o--m/refs");
  put(folder / "models--o--m/blobs/1", "x");
  fs::create_symlink("../../blobs/1", snapshot + "/model.safetensors");
  CHECK(found("models--o--m") == snapshot + "/model.safetensors");
  fs::create_directories(folder / "models--o--m/snapshots/older");
  CHECK(contains(sentence_of([&] { found("models--o--m"); }), "holds 2 snapshots"));
  put(folder / "models--o--m/refs/main", "abc\n");
  CHECK(found("models--o--m") == snapshot + "/model.safetensors");
  CHECK(found("models--o--m/snapshots/abc/model.safetensors") == snapshot + "/model.safetensors");
  put(folder / "model.safetensors.index.json", "{}");
  CHECK(found("") == folder.path() + "//model.safetensors.index.json");
  CHECK(find_weights(files, folder / "model.safetensors.index.json").index);
  for (const std::string other : {"pytorch_model.bin", "tf_model.h5", "adapter_model.safetensors"}) {
    fs::create_directories(folder / other + ".d");
    put(folder / other + ".d/" + other, "x");
    CHECK(contains(sentence_of([&] { found(other + ".d"); }), "holds " + other + " but no model.safetensors; "));
  }
  // Only the blobs of the same cache lie outside a folder.
  CHECK(sentence_of([&] { expect_inside(files, snapshot, snapshot + "/model.safetensors"); }) == "no error");
  fs::create_symlink("../../../secret", snapshot + "/out");
  put(folder / "secret", "x");
  CHECK(contains(sentence_of([&] { expect_inside(files, snapshot, snapshot + "/out"); }), "is not followed there"));
  fs::create_symlink("nowhere", snapshot + "/dangling");
  CHECK(contains(sentence_of([&] { expect_inside(files, snapshot, snapshot + "/dangling"); }), "No such file"));
}

TEST_CASE("a header of just over 100 MB is refused, though the file holds it") {
  const Folder folder;
  auto bytes = file_of("{}");
  const std::uint64_t length = 100'000'001;
  std::memcpy(bytes.data(), &length, 8);
  put(folder / "big", bytes);
  fs::resize_file(folder / "big", length + 8);  // sparse
  CHECK(contains(sentence_of([&] { Safetensors{FileSystem::system(), folder / "big"}; }), "100000001 bytes"));
}

TEST_CASE("a file cut at any byte is refused, one with any byte changed is refused or still in order") {
  const Folder folder;
  write_small(FileSystem::system(), folder.path());
  const auto good = contents(folder / "t.safetensors");
  const auto path = folder / "mutant";
  const auto read_all = [&] {
    Safetensors file(FileSystem::system(), path);
    std::int64_t bytes = 0;
    for (auto& tensor : file.tensors()) {
      bytes += tensor.end - tensor.begin;
      if (tensor.type.type != DType::f32) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.count()));
      file.read(tensor, 0, std::span{values});
    }
    return bytes;
  };
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    put(path, good.substr(0, cut));
    CHECK_THROWS_AS(read_all(), DataError);
  }
  put(path, good + '\0');
  CHECK_THROWS_AS(read_all(), DataError);

  const auto header = 8 + static_cast<std::size_t>(static_cast<unsigned char>(good[0])) +
                      256 * static_cast<std::size_t>(static_cast<unsigned char>(good[1]));
  const auto data = static_cast<std::int64_t>(good.size() - header);
  int refused = 0, accepted = 0;
  const auto attempt = [&](const std::string& bytes) {
    put(path, bytes);
    std::int64_t covered = 0;
    try {
      covered = read_all();
    } catch (const DataError&) {
      ++refused;
      return;
    }
    ++accepted;
    CHECK(covered == data);  // all bytes behind the header belong to a tensor
  };
  for (std::size_t i = 0; i < header; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      auto bytes = good;
      bytes[i] = static_cast<char>(bytes[i] ^ 1 << bit);
      attempt(bytes);
    }
  const Random random(7, RandomPurpose::test);
  for (std::uint64_t n = 0; n < 2000; ++n) {  // a few random edits of the header's text
    auto bytes = good;
    for (std::uint64_t edit = 0; edit < 1 + n % 4; ++edit) {
      const auto draw = random.block(8 * n + edit);
      const auto at = 8 + draw[0] % (header - 8);
      bytes[at] = R"({}[]",:0123456789 F-eE\u)"[draw[1] % 23];
    }
    attempt(bytes);
  }
  CHECK(refused > 3000);
  CHECK(accepted > 100);  // changed names and metadata: the manifest's checksums see them
}

TEST_CASE("short reads and writes and signals change nothing") {
  const Folder a, b;
  write_small(FileSystem::system(), a.path());
  FaultyFileSystem files;
  files.longest = 3;
  files.interrupted = true;
  write_small(files, b.path());
  CHECK(contents(a / "t.safetensors") == contents(b / "t.safetensors"));
  Safetensors file(files, b / "t.safetensors");
  std::vector<float> values(6);
  file.read(file.at("a"), 0, std::span{values});
  CHECK(std::memcmp(values.data(), some.data(), 24) == 0);
  fs::resize_file(b / "t.safetensors", 100);
  CHECK(contains(sentence_of([&] { file.read(file.at("a"), 0, std::span{values}); }), "truncated"));
}

TEST_CASE("a tensor beyond 2^31 elements is read at its end") {
  const Folder folder;
  const std::int64_t count = (1ll << 31) + 5;
  put(folder / "big", file_of(text(R"({"a":{"dtype":"U8","shape":[)", count, R"(],"data_offsets":[0,)", count, "]}}")));
  const auto header = fs::file_size(folder / "big");
  fs::resize_file(folder / "big", header + static_cast<std::uint64_t>(count));  // sparse
  {
    std::fstream out(folder / "big", std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(-1, std::ios::end);
    out.put('\x2a');
  }
  Safetensors file(FileSystem::system(), folder / "big");
  std::vector<std::uint8_t> last(2);
  file.read(file.at("a"), count - 2, std::span{last});
  CHECK(last[1] == 42);
}
