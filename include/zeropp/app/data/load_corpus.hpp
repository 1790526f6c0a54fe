// SPDX-License-Identifier: Apache-2.0
// Loads what --data names: text with a tokenizer, or tokens; files or folders.
//
//   const auto corpus = load_corpus({.path = "novels", .vocabulary = 2048, .held_out = 0.1});
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/app/data/text.hpp>
#include <zeropp/app/data/tiktoken.hpp>
#include <zeropp/app/data/token_folder.hpp>

namespace zeropp {

namespace detail {

/// 1234567 as 1,234,567.
inline std::string with_commas(std::int64_t number) {
  auto out = text(number);
  for (auto at = out.size(); at > 3; at -= 3) out.insert(at - 3, ",");
  return out;
}

/// A file of a tokenizer in the folder of the data; empty if there is none.
inline std::string tokenizer_beside(FileSystem& files, const std::string& folder) {
  if (files.kind(folder + "/tokenizer.json") != FileSystem::Kind::nothing) return folder + "/tokenizer.json";
  for (auto& name : files.list(folder))
    if (name.ends_with(".tiktoken")) return folder + "/" + name;
  return {};
}

inline std::string described_split(std::string_view what, std::int64_t training, std::int64_t held_out) {
  const auto tenths = training + held_out ? (2000 * held_out / (training + held_out) + 1) / 2 : 0;
  return text("data: ", with_commas(training), " ", what, " for training, ", with_commas(held_out), " held out (",
              tenths / 10, ".", tenths % 10, " %)");
}

/// Fills in the tokenizer that the options name, if they do.
inline void take_tokenizer(const CorpusOptions& o, const std::string& beside, FileSystem& files, Corpus& corpus) {
  const std::string given = o.tokenizer.empty() ? beside : o.tokenizer, kept = "the tokenizer of the checkpoint";
  if (o.stored.empty() && given.empty()) return;
  if (o.stored.empty()) {
    auto content = read_text(files, given, 1 << 30, File::Links::follow);
    corpus.tokenizer = read_tokenizer(content, given);
    if (kind_of_file(std::string_view(content).substr(0, 4096)))
      corpus.tokenizer_json = std::move(content);  // as it is: it may say more than is read here
    else if (corpus.tokenizer->encodes())
      corpus.tokenizer_json = tokenizer_to_json(*corpus.tokenizer);
  } else {
    corpus.tokenizer = read_tokenizer(o.stored, kept);
    corpus.tokenizer_json = o.stored;
    if (!o.tokenizer.empty() && load_tokenizer(o.tokenizer, files) != *corpus.tokenizer)
      throw ConfigError(text(o.tokenizer,
                             " is another tokenizer than that of the checkpoint; leave it out, or begin anew "
                             "with --resume none"));
  }
  if (const auto size = corpus.tokenizer->vocabulary(); size > o.vocabulary)
    throw ConfigError(text(o.stored.empty() ? given : kept, " has ", size, " tokens, more than the ", o.vocabulary,
                           " of the model; give --vocab-size ", size, " or another tokenizer"));
}

inline Corpus load_tokens(const CorpusOptions& o, const TokenFolder& found, const std::string& beside,
                          FileSystem& files) {
  Corpus corpus;
  take_tokenizer(o, beside, files, corpus);
  const auto vocabulary = corpus.tokenizer ? corpus.tokenizer->vocabulary() : o.vocabulary;
  const auto source = open_tokens(files, found.training, o.format, vocabulary);
  if (found.validation.empty()) {
    corpus.split = split(source, o.held_out);
  } else {
    const auto held_out = open_tokens(files, found.validation, o.format, vocabulary);
    corpus.split = {{source, 0, source->size()}, {held_out, 0, held_out->size()}};
  }
  const auto& [training, validation] = corpus.split;
  corpus.description = described_split("tokens", training.size(), validation.size());
  if (!found.validation.empty())
    corpus.description +=
        text(": ", found.training.size(), " and ", found.validation.size(), " files, --held-out is not needed");
  if (corpus.tokenizer) {
    std::vector<std::int32_t> piece;
    for (auto at = validation.begin; at < validation.end; at += static_cast<std::int64_t>(piece.size())) {
      piece.resize(static_cast<std::size_t>(std::min<std::int64_t>(1 << 16, validation.end - at)));
      validation.source->read(at, piece);
      for (auto token : piece) corpus.held_out_bytes += corpus.tokenizer->length_of(token);
    }
  }
  return corpus;
}

inline Corpus text_corpus(const CorpusOptions& o, const std::string& beside, FileSystem& files) {
  if (!(o.held_out >= 0 && o.held_out < 1))
    throw ConfigError(text("the held-out fraction must be in [0, 1), got ", o.held_out));
  const auto all = load_text(o.path, files);
  const std::string_view view = all;
  const auto cut = held_out_begin(view, o.held_out);
  Corpus corpus;
  take_tokenizer(o, beside, files, corpus);
  if (!corpus.tokenizer) {
    if (!o.learns)
      throw ConfigError(text(o.path,
                             " is text, and the weights were trained with a tokenizer that is not beside them; give "
                             "--tokenizer tokenizer.json"));
    corpus.tokenizer = o.vocabulary == 256 ? Tokenizer{} : Tokenizer::train(view.substr(0, cut), o.vocabulary);
    try {
      corpus.tokenizer_json = tokenizer_to_json(*corpus.tokenizer);
    } catch (const DataError&) {  // learned twice from other pieces: our own form tells them apart
      corpus.tokenizer_json = corpus.tokenizer->serialise();
    }
  }
  auto tokens = corpus.tokenizer->encode(view.substr(0, cut));
  const auto training = static_cast<std::int64_t>(tokens.size());
  const auto rest = corpus.tokenizer->encode(view.substr(cut));
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  const auto source = std::make_shared<MemoryTokens>(std::move(tokens));
  corpus.split = {{source, 0, training}, {source, training, source->size()}};
  corpus.held_out = all.substr(cut);
  corpus.held_out_bytes = static_cast<std::int64_t>(corpus.held_out.size());
  corpus.description = described_split("bytes of text", static_cast<std::int64_t>(cut), corpus.held_out_bytes);
  return corpus;
}

}  // namespace detail

/// Throws DataError and ConfigError, with what to do.
inline Corpus load_corpus(const CorpusOptions& o, FileSystem& files = FileSystem::system()) {
  constexpr auto nothing = FileSystem::Kind::nothing;
  const bool folder = files.kind(o.path + "/.") == FileSystem::Kind::folder;  // with the dot a link is followed
  const auto beside = folder ? detail::tokenizer_beside(files, o.path) : std::string();
  if (folder) {
    const auto found = TokenFolder::of(files, o.path);
    if (!found.training.empty()) return detail::load_tokens(o, found, beside, files);
    if (o.format != "auto") throw DataError(text(o.path, " holds no *.bin, which --data-format ", o.format, " reads"));
    return detail::text_corpus(o, beside, files);
  }
  // Megatron's data sets are named by both of their files, or by what these have in common.
  const auto stem = o.path.ends_with(".idx") ? o.path.substr(0, o.path.size() - 4) : o.path;
  if (files.kind(stem + ".idx") != nothing && files.kind(stem + ".bin") != nothing)
    return detail::load_tokens(o, {{stem + ".bin"}, {}}, beside, files);
  bool tokens = o.format != "auto" || o.path.ends_with(".bin");
  if (!tokens && files.kind(o.path) != nothing) {
    auto file = File::read(files, o.path, File::Links::follow);
    const auto* kind = file.size() ? kind_of_file(file) : nullptr;
    tokens = kind && kind->as_weights == "give it as --data";
  }
  return tokens ? detail::load_tokens(o, {{o.path}, {}}, beside, files) : detail::text_corpus(o, beside, files);
}

}  // namespace zeropp
