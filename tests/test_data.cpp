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

#include <zeropp/app/data/corpus.hpp>

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
