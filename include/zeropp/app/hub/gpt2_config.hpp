// SPDX-License-Identifier: Apache-2.0
// config.json of a GPT-2 in the Hugging Face transformers library: what it says of a model's sizes, read and written.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include <zeropp/train/checkpoint/file.hpp>
#include <zeropp/train/checkpoint/strict_json.hpp>

namespace zeropp {

struct Gpt2Config {
  std::int64_t n_layer = 12, n_head = 12, n_embd = 768, n_positions = 1024, vocab_size = 50257;
  double dropout = 0;
  std::int64_t end_of_text = -1;  ///< token; -1: none
  std::string dtype = "float32";  ///< of the weights beside it

  /// Throws DataError for another model, and for one that computes otherwise than ours.
  static Gpt2Config parse(const std::string& content, const std::string& path) {
    const auto json = parse_strict_json(content, path);
    const auto expect = [&](const char* key, const nlohmann::json& absent,
                            std::initializer_list<nlohmann::json> wanted) {
      const auto value = json.is_object() && json.contains(key) ? json[key] : absent;
      for (auto& one : wanted)
        if (value == one) return;
      throw DataError(text(path, ": ", key, " is ", value.dump(), ", the model here has ", wanted.begin()->dump(),
                           "; these weights would compute something else"));
    };
    expect("model_type", nullptr, {"gpt2"});
    Gpt2Config c;
    for (auto [key, value] : {std::pair{"n_layer", &c.n_layer},
                              {"n_head", &c.n_head},
                              {"n_embd", &c.n_embd},
                              {"n_positions", &c.n_positions},
                              {"vocab_size", &c.vocab_size}})
      if (json.contains(key)) *value = json_count(json, key, path);
    expect("activation_function", "gelu_new", {"gelu_new", "gelu_pytorch_tanh"});
    expect("layer_norm_epsilon", 1e-5, {1e-5});
    expect("n_inner", nullptr, {nullptr, 4 * c.n_embd});
    expect("scale_attn_weights", true, {true});
    expect("scale_attn_by_inverse_layer_idx", false, {false});
    expect("add_cross_attention", false, {false});
    expect("tie_word_embeddings", true, {true});
    return c;
  }
  static Gpt2Config load(const std::string& path, FileSystem& files = FileSystem::system()) {
    return parse(read_text(files, path, 1 << 20, File::Links::follow), path);
  }

  /// The file that GPT2LMHeadModel.from_pretrained reads.
  std::string to_json() const {
    const auto end = end_of_text < 0 ? nlohmann::json() : nlohmann::json(end_of_text);
    return nlohmann::json{{"architectures", {"GPT2LMHeadModel"}},
                          {"model_type", "gpt2"},
                          {"n_layer", n_layer},
                          {"n_head", n_head},
                          {"n_embd", n_embd},
                          {"n_positions", n_positions},
                          {"n_ctx", n_positions},
                          {"n_inner", nullptr},
                          {"vocab_size", vocab_size},
                          {"activation_function", "gelu_new"},
                          {"layer_norm_epsilon", 1e-5},
                          {"initializer_range", 0.02},
                          {"attn_pdrop", 0.0},
                          {"embd_pdrop", dropout},
                          {"resid_pdrop", dropout},
                          {"scale_attn_weights", true},
                          {"tie_word_embeddings", true},
                          {"bos_token_id", end},
                          {"eos_token_id", end},
                          {"torch_dtype", dtype}}
               .dump(1) +
           "\n";
  }
  /// The file that lets AutoTokenizer take tokenizer.json as it is.
  std::string tokenizer_config() const {
    return nlohmann::json{{"tokenizer_class", "PreTrainedTokenizerFast"},
                          {"model_max_length", n_positions},
                          {"clean_up_tokenization_spaces", false}}
               .dump(1) +
           "\n";
  }
};

}  // namespace zeropp
