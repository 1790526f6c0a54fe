// SPDX-License-Identifier: Apache-2.0
// Data: tokenizers that give the bytes back, token files and every way in which one is refused, batches that depend on
// the step only.
#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <tuple>

#include <zeropp/app/data/load_corpus.hpp>

using namespace zeropp;

namespace {

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / text("zeropp-data-", ::getpid());
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name, const std::string& content) const {
    std::ofstream((path / name), std::ios::binary) << content;
    return (path / name).string();
  }
};

std::string sample_text(int words) {
  const Random random(4, RandomPurpose::test);
  const char* vocabulary[] = {"the ", "cat ", "sat", " on", "\n", "42", ", ", "caf\xc3\xa9 ", "isn't "};
  std::string out;
  for (int i = 0; i < words; ++i) out += vocabulary[random.bits(static_cast<std::uint64_t>(i)) % 9];
  return out;
}

std::vector<std::int32_t> numbers(std::int64_t n) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) tokens[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  return tokens;
}

std::string header(std::int32_t magic, std::int32_t version, std::int32_t count) {
  std::string bytes(1024, '\0');
  const std::int32_t head[] = {magic, version, count};
  std::memcpy(bytes.data(), head, sizeof head);
  return bytes;
}

void refused(const std::string& path, const char* sentence, FileTokens::Format format = FileTokens::Format::llm_c) {
  CHECK_THROWS_WITH_AS(FileTokens(path, 100, format), doctest::Contains(sentence), DataError);
}

}  // namespace

TEST_CASE("any bytes come back from bytes and from byte pairs") {
  std::string all;
  for (int i = 0; i < 3000; ++i)
    all += static_cast<char>(Random(2, RandomPurpose::test).bits(static_cast<std::uint64_t>(i)));
  const auto sample = sample_text(4000);
  for (std::int64_t vocabulary : {256, 300, 512}) {
    const auto tokenizer = Tokenizer::train(sample, vocabulary);
    CHECK(tokenizer.vocabulary() <= vocabulary);
    for (const auto& input : {std::string(), std::string("x"), sample, all, std::string("   \n\n  a  b")}) {
      const auto tokens = tokenizer.encode(input);
      CHECK(tokenizer.decode(tokens) == input);
    }
    CHECK(Tokenizer::train(sample, vocabulary).encode(sample) == tokenizer.encode(sample));
  }
  CHECK(Tokenizer::train(sample, 512).encode(sample).size() < sample.size() / 2);
  CHECK_THROWS_AS(Tokenizer::train(sample, 100), ConfigError);
  CHECK_THROWS_AS(Tokenizer{}.bytes_of(256), DataError);
}

TEST_CASE("token files: uint16 and uint32 of llm.c, raw uint16") {
  const Folder folder;
  for (std::int64_t vocabulary : {100, 100000}) {
    const auto path = (folder.path / text("tokens", vocabulary, ".bin")).string();
    write_tokens(path, numbers(90), vocabulary);
    const FileTokens tokens(path, 100);
    CHECK(tokens.size() == 90);
    std::vector<std::int32_t> some(10);
    tokens.read(25, some);
    CHECK(some[9] == 34);
  }
  std::string raw;
  for (char c = 0; c < 50; ++c) raw += std::string{c, '\0'};
  CHECK(FileTokens(folder.file("raw", raw), 100, FileTokens::Format::raw_uint16).size() == 50);
}

TEST_CASE("bad token files are refused with file and offset") {
  const Folder folder;
  refused((folder.path / "none").string(), "none");
  refused(folder.file("empty", ""), "is empty");
  refused(folder.file("short", "abc"), "ends at byte 3, in the middle of its header");
  refused(folder.file("magic", header(7, 1, 1) + "ab"), "begins with the number 7 at byte 0");
  refused(folder.file("version", header(20240520, 3, 1) + "ab"), "is of version 3 at byte 4");
  refused(folder.file("cut", header(20240520, 1, 5) + "abcd"), "would end at byte 1034, but it ends at byte 1028");
  refused(folder.file("negative", header(20240520, 1, -5)), "-5 tokens");
  refused(folder.file("none_in_it", header(20240520, 1, 0)), "holds no tokens");
  refused(folder.file("odd", "abc"), "even number", FileTokens::Format::raw_uint16);
  refused(folder.file("large", header(20240520, 1, 2) + std::string("\x01\x00\x64\x00", 4)),
          "the token 100 at byte 1026");
  refused(folder.path.string(), "not a regular file");
  CHECK_THROWS_AS(write_tokens((folder.path / "w").string(), numbers(10), 5), DataError);
}

TEST_CASE("raw numbers that are wider than they are said to be, and files that are no tokens, are named") {
  const Folder folder;
  const auto as_bytes = [](auto width, int count) {
    std::string bytes;
    for (int i = 0; i < count; ++i) {
      const auto value = static_cast<decltype(width)>(1 + i % 90);
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    return bytes;
  };
  using Format = FileTokens::Format;
  const auto wide = folder.file("wide", as_bytes(std::int32_t{}, 100));
  refused(wide, "holds numbers of 32 bits, every second one of 16 bits is 0; give --data-format raw32",
          Format::raw_uint16);
  CHECK(FileTokens(wide, 100, Format::raw_uint32).size() == 100);
  for (auto format : {Format::raw_uint16, Format::raw_uint32})
    refused(folder.file("widest", as_bytes(std::int64_t{}, 100)), "holds numbers of 64 bits", format);
  CHECK(FileTokens(folder.file("narrow", as_bytes(std::uint16_t{}, 100)), 100, Format::raw_uint16).size() == 100);
  refused(folder.file("odd32", as_bytes(std::uint16_t{}, 101)), "need a multiple of 4; byte 200", Format::raw_uint32);
  refused(folder.file("array.npy", "\x93NUMPY\1" + as_bytes(std::uint16_t{}, 99)),
          "is a NumPy array (.npy), not raw tokens; write", Format::raw_uint16);
  refused(folder.file("llm.bin", header(20240520, 1, 2) + "abcd"), "leave out --data-format", Format::raw_uint16);
  refused(folder.file("model.bin", "\xc6\xd7\x34\x01" + std::string(2000, '\1')),
          "is a model file of llm.c, not tokens");
}

TEST_CASE("what is not text is refused by its kind, with the flag that would be right") {
  const Folder folder;
  const std::string rest(5000, 'x'),
      json = R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": []})";
  const auto load = [&](const std::string& name, const std::string& content) {
    (void)load_corpus({.path = folder.file(name, content)});
  };
  using namespace std::string_literals;
  for (const auto& [content, name, advice] :
       {std::tuple{"PK\3\4"s, "a zip archive (.npz", "--data-format raw"},
        {"\x93NUMPY"s, "a NumPy array", "--data-format raw"},
        {"\x40\0\0\0\0\0\0\0{\"a\": {"s, "a file of weights (safetensors)", "--weights"},
        {json, "a tokenizer (tokenizer.json)", "--tokenizer"},
        {"{\"metadata\": {}, \"weight_map\": {"s, "an index of weights", "--weights"},
        {"\x89PNG\r\n"s, "a picture (PNG)", "give a text file"},
        {"\xff\xd8\xff\xe0"s, "a picture (JPEG)", "give a text file"},
        {"\x1f\x8b\x08"s, "compressed by gzip", "unpack it"},
        {"\xff\xfeh\0i\0"s, "text in UTF-16", "iconv -f UTF-16"},
        {"PAR1"s, "a Parquet file", "column of text"},
        {"some text\0more"s, "its byte 9 is 0", "--data-format raw (uint16) or raw32"}})
    for (const std::string file : {"x", "x.txt"}) {
      CHECK_THROWS_WITH_AS(load(file, content + rest), doctest::Contains(name), DataError);
      CHECK_THROWS_WITH_AS(load(file, content + rest), doctest::Contains(advice), DataError);
    }
  CHECK_NOTHROW(load("lines.jsonl", "{\"text\": \"" + rest + "\"}\n"));  // JSON of a text's lines is text
}

TEST_CASE("text is cut at a line, at white space or at a character, never into nothing") {
  const std::string lines = "aaaa\nbbbb\ncccc\ndddd\n", words = "aaaa bbbb cccc dddd eeee", one(100, 'x');
  CHECK(held_out_begin(lines, 0.3) == 14);
  CHECK(held_out_begin(words, 0.3) == 19);
  CHECK(held_out_begin(one, 0.1) == 90);
  CHECK(held_out_begin(one, 0) == 100);
  std::string accents;
  for (int i = 0; i < 50; ++i) accents += "\xc3\xa9";
  CHECK(held_out_begin(accents, 0.11) == 90);  // byte 89 is inside of a character
  // A late long line leaves most of what was asked for.
  const auto late = std::string(80000, 'a') + "\n" + std::string(39000, 'b') + "\n" + std::string(250, 'c');
  CHECK(held_out_begin(late, 0.1) == late.size() - 11925);
  const Folder folder;
  const auto corpus = load_corpus({.path = folder.file("one.txt", one + one), .held_out = 0.2});
  CHECK(corpus.split.validation.size() == 40);
  CHECK(corpus.description == "data: 160 bytes of text for training, 40 held out (20.0 %)");
}

TEST_CASE("folders of tokens: nanoGPT's, llm.c's shards, Megatron's pair") {
  const Folder folder;
  const auto raw = [](int begin, int end) {
    std::string bytes;
    for (int i = begin; i < end; ++i) bytes += std::string{static_cast<char>(i % 100), '\0'};
    return bytes;
  };
  const auto path = [&](const std::string& name) { return (folder.path / name).string(); };
  const auto tokens = [](const TokenRange& range) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(range.size()));
    range.source->read(range.begin, all);
    return all;
  };
  for (const char* name : {"nano", "shards", "only_val", "other"})
    std::filesystem::create_directories(folder.path / name);
  folder.file("nano/train.bin", raw(0, 90)), folder.file("nano/val.bin", raw(90, 99));
  folder.file("nano/input.txt", "what it was made of"), folder.file("nano/meta.pkl", "\x80\4\x95");
  const auto nano = load_corpus({.path = path("nano"), .vocabulary = 100});
  CHECK(tokens(nano.split.training).size() == 90);
  CHECK(tokens(nano.split.validation) == std::vector<std::int32_t>{90, 91, 92, 93, 94, 95, 96, 97, 98});
  CHECK(nano.description ==
        "data: 90 tokens for training, 9 held out (9.1 %): 1 and 1 files, --held-out is not needed");
  CHECK(!nano.tokenizer);
  const auto all = numbers(100);
  for (const auto& [name, begin, end] :
       {std::tuple{"train_000001", 0, 40}, {"train_000002", 40, 75}, {"val_000000", 75, 95}})
    write_tokens(path(text("shards/x_", name, ".bin")),
                 std::span{all}.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)), 100);
  const auto shards = load_corpus({.path = path("shards"), .vocabulary = 100});
  CHECK(tokens(shards.split.training) == numbers(75));
  std::vector<std::int32_t> across(4);
  shards.split.training.source->read(38, across);
  CHECK(across == std::vector<std::int32_t>{38, 39, 40, 41});
  CHECK(tokens(shards.split.validation).front() == 75);
  for (const char* name : {"retrieval_000", "x_train_2"}) write_tokens(path(text("shards/", name, ".bin")), all, 100);
  write_tokens(path("shards/x_test_000.bin"), all, 100), write_tokens(path("shards/validation.bin"), all, 100);
  CHECK(load_corpus({.path = path("shards"), .vocabulary = 100}).split.training.size() == 275);
  CHECK(load_corpus({.path = path("shards"), .vocabulary = 100}).split.validation.size() == 120);
  folder.file("only_val/val.bin", raw(0, 90));
  CHECK_THROWS_WITH_AS(load_corpus({.path = path("only_val"), .vocabulary = 100}),
                       doctest::Contains("no other *.bin to train on"), DataError);
  folder.file("other/data.bin", raw(0, 90) + raw(0, 900));
  CHECK_THROWS_WITH_AS(load_corpus({.path = path("other"), .vocabulary = 100}),
                       doctest::Contains("give --data-format raw"), DataError);
  CHECK(load_corpus({.path = path("other"), .format = "raw", .vocabulary = 100}).split.training.size() == 891);

  // Megatron's: two sequences of 40 and 50 tokens.
  const auto number = [](auto value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); };
  const auto index = [&](char type, std::int64_t second) {
    return std::string("MMIDIDX\0\0", 9) + number(std::uint64_t{1}) + type + number(std::int64_t{2}) +
           number(std::int64_t{2}) + number(std::int32_t{40}) + number(std::int32_t{50}) + number(std::int64_t{0}) +
           number(second) + number(std::int64_t{0});
  };
  folder.file("text_document.bin", raw(0, 90)), folder.file("text_document.idx", index(8, 80));
  for (const char* name : {"text_document", "text_document.bin", "text_document.idx"})
    CHECK(tokens(load_corpus({.path = path(name), .vocabulary = 100, .held_out = 0}).split.training) == numbers(90));
  const auto megatron = [&](const std::string& content, const char* sentence) {
    folder.file("text_document.idx", content);
    CHECK_THROWS_WITH_AS(load_corpus({.path = path("text_document"), .vocabulary = 100}), doctest::Contains(sentence),
                         DataError);
  };
  megatron(index(8, 60), "sequence 1 does not follow the one before it");
  megatron(index(5, 80), "its tokens are of type 5");
  megatron(index(4, 160), "tells of 360 bytes of tokens, but");
  megatron(index(8, 80).substr(0, 20), "shorter than its header");
  megatron(index(8, 80).substr(0, 50), "truncated");
  megatron("nothing that is known at all, just text", "it is no index of Megatron");
}

namespace {
/// "ab" and "abc" are tokens beside the bytes, "<|end|>" is special.
std::string small_tokenizer_json(const std::string& pre_tokenizer, const std::string& more = {}) {
  const detail::ByteAlphabet alphabet;
  auto vocabulary = nlohmann::json::object();
  for (int b = 0; b < 256; ++b) vocabulary[alphabet.shown[static_cast<std::size_t>(b)]] = 255 - b;
  vocabulary["ab"] = 256, vocabulary["abc"] = 257,
  vocabulary
      ["\xc4\xa0"
       "a"] = 258;
  return R"({"added_tokens": [{"id": 259, "content": "<|end|>"}], "pre_tokenizer": )" + pre_tokenizer + more +
         R"(, "model": {"type": "BPE", "merges": ["a b", ["ab", "c"], "\u0120 a"], "vocab": )" + vocabulary.dump() +
         "}}";
}
const std::string byte_level = R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})";
}  // namespace

TEST_CASE("tokenizer.json of byte-level BPE: read, used, written") {
  const auto tokenizer = tokenizer_from_json(small_tokenizer_json(byte_level), "it");
  CHECK(tokenizer.vocabulary() == 260);
  CHECK(tokenizer.decode(std::vector<std::int32_t>{257, 258, 259, 255 - '\n'}) == "abc a<|end|>\n");
  CHECK(tokenizer.token_of_byte('\n') == 255 - '\n');
  CHECK(tokenizer.length_of(257) == 3);
  CHECK(tokenizer.length_of(259) == 0);
  if (Pattern::available) {
    CHECK(tokenizer.encode("abc ac<|end|>ab") == std::vector<std::int32_t>{257, 258, 255 - 'c', 259, 256});
    std::string all;
    for (int i = 0; i < 3000; ++i)
      all += static_cast<char>(Random(2, RandomPurpose::test).bits(static_cast<std::uint64_t>(i)));
    for (const auto& input :
         {std::string(), sample_text(400), all, std::string("   \n\n  a  b"), std::string("abc<|end|>")})
      CHECK(tokenizer.decode(tokenizer.encode(input)) == input);
    CHECK(tokenizer_from_json(tokenizer_to_json(tokenizer), "it") == tokenizer);
  } else {
    CHECK_THROWS_WITH_AS((void)tokenizer.encode("abc"), doctest::Contains("install libpcre2-dev"), ConfigError);
  }
  // Its own tokenizers come back as they were, words cut by the same code.
  for (std::int64_t vocabulary : {256, 300}) {
    const auto learned = Tokenizer::train(sample_text(500), vocabulary);
    const auto again = tokenizer_from_json(tokenizer_to_json(learned), "it");
    CHECK(again == learned);
    CHECK(again.learned());
    CHECK(again.encode(sample_text(900)) == learned.encode(sample_text(900)));
    if (Pattern::available) {  // and the pattern in the file cuts as that code does
      const Pattern pattern(detail::learned_pattern);
      for (const auto& input : {sample_text(900), std::string(70, ' ') + "a", std::string(64, ' ') + "a",
                                " " + std::string(64, 'b'), std::string("\t a\n\n  b,c  ..'x 12a\x7f\x01")}) {
        std::vector<std::string> ours, theirs;
        detail::for_each_word(input, [&](auto word) { ours.emplace_back(word); });
        pattern.for_each_piece(input, [&](auto word) { theirs.emplace_back(word); });
        CHECK(ours == theirs);
      }
    }
  }
  const auto refuse = [](const std::string& json, const char* sentence) {
    CHECK_THROWS_WITH_AS(tokenizer_from_json(json, "it"), doctest::Contains(sentence), DataError);
  };
  refuse("{}", "lacks the member \"model\"");
  refuse(R"({"model": {"type": "WordPiece", "vocab": {}}})",
         "its model is WordPiece; tokenizers of byte-level BPE are");
  refuse(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})", "no token for some bytes");
  refuse(R"({"model": {"type": "BPE", "byte_fallback": true, "vocab": {}, "merges": []}})", "its tokens are not bytes");
  auto bad = small_tokenizer_json(byte_level);
  refuse(bad.replace(bad.find("\"a b\""), 5, "\"a q\""), "names no tokens of it");
  for (const std::string other : {R"({"type": "Whitespace"})", R"({"type": "ByteLevel"})",
                                  R"({"type": "Split", "behavior": "Removed", "pattern": {}})"}) {
    const auto odd = tokenizer_from_json(small_tokenizer_json(other), "it");  // tokens are shown all the same
    CHECK(odd.decode(std::vector<std::int32_t>{257}) == "abc");
    CHECK_THROWS_WITH_AS((void)odd.encode("abc"), doctest::Contains("make tokens with it in Python"), ConfigError);
  }
  CHECK_THROWS_WITH_AS(
      (void)tokenizer_from_json(small_tokenizer_json(byte_level, R"(, "normalizer": {"type": "NFC"})"), "it")
          .encode("a"),
      doctest::Contains("normalises"), ConfigError);
}

TEST_CASE("files of tiktoken") {
  const auto base64 = [](std::string_view bytes) {
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
      std::uint32_t bits = 0;
      for (std::size_t k = 0; k < 3; ++k)
        bits = bits << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
      for (std::size_t k = 0; k < 4; ++k) out += i + k <= bytes.size() ? digits[bits >> (18 - 6 * k) & 63] : '=';
    }
    return out;
  };
  std::string content;
  for (int b = 0; b < 256; ++b) content += base64(std::string(1, static_cast<char>(b))) + text(" ", b, "\n");
  content += base64("ab") + " 256\n" + base64("abc") + " 257\n";
  const auto tokenizer = read_tokenizer(content, "it");
  CHECK(tokenizer.decode(std::vector<std::int32_t>{257, 'd'}) == "abcd");
  CHECK_THROWS_WITH_AS((void)tokenizer.encode("abc"), doctest::Contains("does not say how texts are cut"), ConfigError);
  CHECK_THROWS_WITH_AS(read_tokenizer(content + "YWI= 300\n", "it"), doctest::Contains("line 259"), DataError);
  CHECK_THROWS_WITH_AS(read_tokenizer(content + "!! 300\n", "it"), doctest::Contains("base64 and a number"), DataError);
  CHECK_THROWS_WITH_AS(read_tokenizer("YWI= 0\n", "it"), doctest::Contains("no token for some single bytes"),
                       DataError);
  CHECK_THROWS_WITH_AS(read_tokenizer("PK\3\4 and so on", "it"), doctest::Contains("not a tokenizer"), DataError);
}

TEST_CASE("tokens with their tokenizer are counted in bytes; a tokenizer that does not fit is refused") {
  const Folder folder;
  const auto json = folder.file("tokenizer.json", small_tokenizer_json(byte_level));
  std::vector<std::int32_t> tokens(50, 257);
  tokens[49] = 259;
  write_tokens((folder.path / "t.bin").string(), tokens, 260);
  const auto corpus =
      load_corpus({.path = (folder.path / "t.bin").string(), .vocabulary = 260, .held_out = 0.2, .tokenizer = json});
  CHECK(corpus.split.validation.size() == 10);
  CHECK(corpus.tokenizer_json == small_tokenizer_json(byte_level));
  CHECK(corpus.held_out_bytes == 27);  // nine tokens of three bytes, and a special one
  CHECK(load_corpus({.path = folder.path.string(), .vocabulary = 260}).tokenizer.has_value());  // beside the tokens
  CHECK_THROWS_WITH_AS(load_corpus({.path = folder.path.string(), .vocabulary = 259}),
                       doctest::Contains("give --vocab-size 260"), ConfigError);
  // What the checkpoint keeps comes first, and nothing else may be said.
  const auto text_path = folder.file("text.txt", sample_text(500));
  const auto stored = tokenizer_to_json(Tokenizer::train(sample_text(300), 280));
  const auto again = load_corpus({.path = text_path, .vocabulary = 300, .stored = stored});
  CHECK(again.tokenizer->vocabulary() == 280);
  CHECK(again.tokenizer_json == stored);
  CHECK_THROWS_WITH_AS(load_corpus({.path = text_path, .vocabulary = 300, .tokenizer = json, .stored = stored}),
                       doctest::Contains("another tokenizer than that of the checkpoint"), ConfigError);
  CHECK_THROWS_WITH_AS(load_corpus({.path = text_path, .vocabulary = 300, .learns = false}),
                       doctest::Contains("give --tokenizer"), ConfigError);
}

TEST_CASE("a cursor counts samples: other rows go on where the ones before stopped") {
  const TokenRange range{std::make_shared<MemoryTokens>(numbers(1000)), 0, 1000};
  const TokenLoader four(range, {.batch = 4, .sequence = 7}), six(range, {.batch = 6, .sequence = 7});
  CHECK(four.at(5).tokens == four.at_sample(20).tokens);
  std::set<std::int32_t> seen;
  for (std::int64_t cursor = 0; cursor < 24; cursor += 4)
    for (auto token : four.at_sample(cursor).tokens) CHECK(seen.insert(token).second);
  for (std::int64_t cursor = 24; cursor + 6 < four.windows(); cursor += 6)
    for (auto token : six.at_sample(cursor).tokens) CHECK(seen.insert(token).second);  // none twice
}

TEST_CASE("a file that shrinks or changes while it is read is an error, not a crash") {
  const Folder folder;
  const auto path = (folder.path / "t.bin").string();
  write_tokens(path, numbers(90), 100);
  const FileTokens tokens(path, 100);
  std::vector<std::int32_t> some(10);
  std::filesystem::resize_file(path, 1030);
  CHECK_THROWS_WITH_AS(tokens.read(80, some), doctest::Contains("was changed while it was read"), DataError);
}

TEST_CASE("text: files, folders in the order of names, nothing") {
  const Folder folder;
  const auto b = folder.file("b.txt", "two");
  folder.file("a.txt", "one ");
  folder.file("c.md", "no");
  CHECK(load_text(b) == "two");
  CHECK(load_text(folder.path.string()) == "one two");
  CHECK_THROWS_AS(load_text((folder.path / "nothing").string()), DataError);
  CHECK_THROWS_WITH_AS(load_text(folder.file("e.txt", "")), doctest::Contains("empty"), DataError);
  std::filesystem::create_directories(folder.path / "bare");
  CHECK_THROWS_WITH_AS(load_text((folder.path / "bare").string()), doctest::Contains("no *.txt"), DataError);
}

TEST_CASE("a batch depends on the step only; ranks take its rows in order") {
  const auto source = std::make_shared<MemoryTokens>(numbers(1000));
  for (std::int64_t step : {0, 1, 17, 1000}) {
    const TokenLoader whole({source, 100, 900}, {.batch = 7, .sequence = 16});
    const auto all = whole.at(step);
    REQUIRE(all.rows == 7);
    for (std::size_t i = 0; i < all.tokens.size(); ++i) {
      CHECK(all.labels[i] == all.tokens[i] + 1);
      CHECK(all.tokens[i] >= 100);
      CHECK(all.labels[i] < 900);
    }
    for (int ranks : {2, 3, 10}) {
      std::vector<std::int32_t> together;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto part =
            TokenLoader({source, 100, 900}, {.batch = 7, .sequence = 16, .rank = rank, .ranks = ranks}).at(step);
        CHECK(part.first_sample * 16 == static_cast<std::int64_t>(together.size()));
        together.insert(together.end(), part.tokens.begin(), part.tokens.end());
      }
      CHECK(together == all.tokens);
    }
  }
}

TEST_CASE("an epoch visits every window once, each epoch in an order of its own") {
  const TokenLoader loader({std::make_shared<MemoryTokens>(numbers(1000)), 0, 1000}, {.batch = 4, .sequence = 7});
  std::vector<std::int64_t> first, second;
  for (std::int64_t i = 0; i < loader.windows(); ++i) {
    first.push_back(loader.position(i));
    second.push_back(loader.position(loader.windows() + i));
  }
  CHECK(std::set(first.begin(), first.end()).size() == first.size());
  CHECK(std::set(second.begin(), second.end()).size() == second.size());
  CHECK(first != second);
}

TEST_CASE("validation covers the held-out tokens once, the training none of them") {
  const auto cut = split(std::make_shared<MemoryTokens>(numbers(1000)), 0.1);
  CHECK(cut.training.end == cut.validation.begin);
  CHECK(cut.validation.size() == 100);
  std::vector<std::int32_t> predicted;
  for (int ranks : {1, 3}) {
    predicted.clear();
    const EvaluationLoader count(cut.validation, {.batch = 4, .sequence = 8});
    for (std::int64_t i = 0; i < count.batches(); ++i)
      for (int rank = 0; rank < ranks; ++rank)
        for (auto label :
             EvaluationLoader(cut.validation, {.batch = 4, .sequence = 8, .rank = rank, .ranks = ranks}).at(i).labels)
          if (label >= 0) predicted.push_back(label);
    CHECK(static_cast<std::int64_t>(predicted.size()) == count.labels());
    CHECK(predicted.front() == 901);
    CHECK(predicted.back() == 999);
    CHECK(std::is_sorted(predicted.begin(), predicted.end()));
  }
}

TEST_CASE("too little data and sizes that cannot be are refused") {
  const auto source = std::make_shared<MemoryTokens>(numbers(50));
  CHECK_THROWS_WITH_AS(TokenLoader({source, 0, 50}, {.batch = 8, .sequence = 16}),
                       doctest::Contains("less than one batch of 8 x 16"), DataError);
  CHECK_THROWS_AS(TokenLoader({source, 0, 50}, {.batch = 0, .sequence = 16}), ConfigError);
  CHECK_THROWS_AS(EvaluationLoader({source, 50, 50}, {.batch = 1, .sequence = 16}), DataError);
  CHECK_THROWS_AS(split(source, 1.0), ConfigError);
}

TEST_CASE("byte pairs are those of counting all pairs again after each merge") {
  // The definition, as slow as it is: no counts are carried along.
  const std::string sample = sample_text(300) + " aaaa aaa aaaaaaa abab aabaab";
  std::vector<std::vector<std::int32_t>> words;
  detail::for_each_word(sample, [&](std::string_view word) {
    auto& tokens = words.emplace_back();
    for (char c : word) tokens.push_back(static_cast<unsigned char>(c));
  });
  const auto tokenizer = Tokenizer::train(sample, 300);
  std::int32_t into = 256;
  for (const auto& merge : tokenizer.merges()) {
    std::map<std::pair<std::int32_t, std::int32_t>, int> counts;
    for (auto& word : words)
      for (std::size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    std::pair<std::int32_t, std::int32_t> best;
    int most = 0;
    for (auto& [pair, count] : counts)
      if (count > most) best = pair, most = count;
    CHECK(most >= 2);
    CHECK(best == std::pair(merge.left, merge.right));
    for (auto& word : words)
      for (std::size_t i = 0; i + 1 < word.size(); ++i)
        if (word[i] == best.first && word[i + 1] == best.second)
          word[i] = into, word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ++into;
  }
  CHECK(into > 270);
}

TEST_CASE("a tokenizer on disk: the same again, and every damage refused") {
  const Folder folder;
  const auto tokenizer = Tokenizer::train(sample_text(500), 280);
  const auto path = (folder.path / "tokenizer.txt").string();
  tokenizer.save(path);
  tokenizer.save(path);  // replaces
  CHECK(Tokenizer::load(path) == tokenizer);
  CHECK_THROWS_AS(Tokenizer::load(path + ".missing"), DataError);
  const auto form = tokenizer.serialise();
  for (std::size_t i = 0; i < form.size(); ++i) {
    auto flipped = form;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    CHECK_THROWS_AS(Tokenizer::parse(flipped, "it"), DataError);
    CHECK_THROWS_AS(Tokenizer::parse(form.substr(0, i), "it"), DataError);
  }
  const auto with = [](const std::string& merges, int vocabulary) {  // a checksum that fits, contents that do not
    return text("zeropp tokenizer 1 ", vocabulary, " ", checksum_text(Checksum::of(merges)), "\n") + merges;
  };
  CHECK(Tokenizer::parse(with("97 98\n256 99\n", 258), "it").decode(std::vector<std::int32_t>{257}) == "abc");
  for (const auto& [merges, vocabulary, sentence] :
       {std::tuple{"97 257\n", 257, "does not exist yet"}, {"-1 97\n", 257, "does not exist yet"},
        {"97 98\n97 98\n", 258, "twice"}, {"97 98\n", 300, "fewer"}, {"97 98\n98 99\n", 257, "more"},
        {"97\n", 257, "two numbers"}, {"97 98", 257, "two numbers"}, {"", 70000, "65536"}})
    CHECK_THROWS_WITH_AS(Tokenizer::parse(with(merges, vocabulary), "it"), doctest::Contains(sentence), DataError);
}

TEST_CASE("a loader for no rows, no tokens, or a rank that is not there is refused") {
  const TokenRange range{std::make_shared<MemoryTokens>(numbers(1000)), 0, 1000};
  for (const auto& options : {LoaderOptions{.batch = 0}, LoaderOptions{.sequence = 0}, LoaderOptions{.ranks = 0},
                              LoaderOptions{.rank = 2, .ranks = 2}, LoaderOptions{.rank = -1}}) {
    CHECK_THROWS_AS(TokenLoader(range, options), ConfigError);
    CHECK_THROWS_AS(EvaluationLoader(range, options), ConfigError);
  }
}
