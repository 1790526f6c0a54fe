// SPDX-License-Identifier: Apache-2.0
// The data of a run: text with a tokenizer learned from its training part, or a file of tokens; split into training and
// held-out tokens.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/app/data/loader.hpp>
#include <zeropp/app/data/text.hpp>
#include <zeropp/app/data/tokenizer.hpp>

namespace zeropp {

struct CorpusOptions {
  std::string path;
  bool raw_uint16 = false;        ///< a token file without a header (nanoGPT)
  std::int64_t vocabulary = 256;  ///< of the model; text: 256 for bytes, else of the byte pairs to learn
  double held_out = 0.1;          ///< fraction at the end
};

struct Corpus {
  Split split;
  std::optional<Tokenizer> tokenizer;  ///< none for token files: their tokens cannot be shown
  std::string held_out;                ///< the text held out

  /// Throws DataError and ConfigError.
  static Corpus load(const CorpusOptions& o) {
    if (o.raw_uint16 || o.path.ends_with(".bin")) {
      const auto format = o.raw_uint16 ? FileTokens::Format::raw_uint16 : FileTokens::Format::llm_c;
      return {zeropp::split(std::make_shared<FileTokens>(o.path, o.vocabulary, format), o.held_out), std::nullopt, {}};
    }
    if (!(o.held_out >= 0 && o.held_out < 1))
      throw ConfigError(text("the held-out fraction must be in [0, 1), got ", o.held_out));
    const auto all = load_text(o.path);
    const std::string_view view = all;
    auto cut = all.size() - static_cast<std::size_t>(static_cast<double>(all.size()) * o.held_out);
    while (cut < all.size() && all[cut] != '\n') ++cut;  // between two lines: no word is cut
    auto tokenizer = o.vocabulary == 256 ? Tokenizer{} : Tokenizer::train(view.substr(0, cut), o.vocabulary);
    auto tokens = tokenizer.encode(view.substr(0, cut));
    const auto training = static_cast<std::int64_t>(tokens.size());
    const auto rest = tokenizer.encode(view.substr(cut));
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    const auto source = std::make_shared<MemoryTokens>(std::move(tokens));
    return {{{source, 0, training}, {source, training, source->size()}}, std::move(tokenizer), all.substr(cut)};
  }
};

}  // namespace zeropp
