// SPDX-License-Identifier: Apache-2.0
// How the tensors of a weights file are called and laid out, where that differs from the model: plain data.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <zeropp/base/error.hpp>

namespace zeropp {

struct Naming {
  std::string name = "identity";                ///< recorded in checkpoints
  std::vector<std::string> prefixes = {};       ///< accepted before every name when reading
  std::vector<std::string> wrappers = {};  ///< segments that PyTorch's wrappers put into names: left out when reading
  std::vector<std::string> transposed = {};     ///< endings of matrices [out, in] that the file holds as [in, out]
  std::vector<std::string> skipped = {};        ///< endings of tensors that are no parameters: left out when reading
  std::vector<std::string> by_vocabulary = {};  ///< parameters whose rows are tokens
  /// {copy, original}: a file may hold both where the model has the original only; they must then be equal.
  std::vector<std::pair<std::string, std::string>> tied = {};

  /// Names and shapes of the model.
  static Naming identity() { return {}; }
  /// GPT-2 in the Hugging Face library, whose Conv1D keeps weights as [in, out].
  static Naming gpt2() {
    return {.name = "gpt2",
            .prefixes = {"transformer."},
            .wrappers = {"module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."},
            .transposed = {".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"},
            .skipped = {".attn.bias", ".attn.masked_bias"},
            .by_vocabulary = {"wte.weight", "lm_head.weight"},
            .tied = {{"lm_head.weight", "wte.weight"}}};
  }
  /// A naming of the library by its name.
  static Naming called(std::string_view name) {
    for (auto known : {identity(), gpt2()})
      if (known.name == name) return known;
    throw ConfigError(text("no naming of tensors is called ", name, "; there are identity and gpt2, or give your own"));
  }

  /// The model's name for a tensor of a file.
  std::string parameter_of(std::string_view tensor) const {
    std::string rest;
    while (!tensor.empty()) {  // segment by segment, each with its dot
      const auto segment = tensor.substr(0, std::min(tensor.find('.'), tensor.size() - 1) + 1);
      if (std::find(wrappers.begin(), wrappers.end(), segment) == wrappers.end()) rest += segment;
      tensor.remove_prefix(segment.size());
    }
    for (auto& prefix : prefixes)
      if (rest.starts_with(prefix)) return rest.substr(prefix.size());
    return rest;
  }
  bool skips(std::string_view parameter) const { return ends_in(parameter, skipped); }
  bool has_vocabulary_rows(std::string_view parameter) const {
    return std::find(by_vocabulary.begin(), by_vocabulary.end(), parameter) != by_vocabulary.end();
  }
  bool transposes(std::string_view parameter, const std::vector<std::int64_t>& shape) const {
    return shape.size() == 2 && ends_in(parameter, transposed);
  }
  /// The shape in the file; `vocabulary` (0: as in the model) counts the tokens without padding.
  std::vector<std::int64_t> stored_shape(std::string_view parameter, std::vector<std::int64_t> shape,
                                         std::int64_t vocabulary) const {
    if (vocabulary && !shape.empty() && has_vocabulary_rows(parameter)) {
      if (vocabulary > shape[0])
        throw ConfigError(text("a vocabulary of ", vocabulary, " tokens, but ", parameter, " has ", shape[0], " rows"));
      shape[0] = vocabulary;
    }
    if (transposes(parameter, shape)) std::swap(shape[0], shape[1]);
    return shape;
  }

 private:
  static bool ends_in(std::string_view name, const std::vector<std::string>& endings) {
    return std::any_of(endings.begin(), endings.end(), [&](auto& ending) { return name.ends_with(ending); });
  }
};

}  // namespace zeropp
