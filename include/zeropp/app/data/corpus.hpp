// SPDX-License-Identifier: Apache-2.0
// The data of a run: training and held-out tokens, and the tokenizer that shows them. load_corpus.hpp makes it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <zeropp/app/data/loader.hpp>
#include <zeropp/app/data/tokenizer.hpp>

namespace zeropp {

struct CorpusOptions {
  std::string path;
  std::string format = "auto";    ///< or "raw": token files without a header, uint16 (nanoGPT); "raw32": uint32
  std::int64_t vocabulary = 256;  ///< of the model; text: 256 for bytes, else of the byte pairs to learn
  double held_out = 0.1;          ///< fraction at the end
  std::string tokenizer = {};     ///< a file; empty: the one beside the data, else for text bytes or learned pairs
  std::string stored = {};        ///< a tokenizer.json's text, of the run that goes on: it comes before all others
  bool learns = true;             ///< byte pairs from the text; else a tokenizer is needed
};

struct Corpus {
  Split split;
  std::optional<Tokenizer> tokenizer;  ///< none for token files without one: their tokens cannot be shown
  std::string tokenizer_json;          ///< of the tokenizer; empty where there is none
  std::string held_out;                ///< the text held out; empty for token files
  std::int64_t held_out_bytes = 0;     ///< of text that the held-out tokens stand for; 0: not known
  std::string description;             ///< one line: what was found, and how it is split
};

}  // namespace zeropp
