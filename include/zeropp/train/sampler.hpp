// SPDX-License-Identifier: Apache-2.0
// Text out of a model: the next token drawn from its logits, the same for the same seed on any ranks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include <zeropp/base/random.hpp>
#include <zeropp/device/tensor.hpp>

namespace zeropp {

struct SampleOptions {
  float temperature = 0.8f;  ///< 0: the most likely token
  std::int64_t top_k = 0;    ///< draw from the k most likely; 0: from all
  std::uint64_t seed = 1337;
};

/// The token that `uniform` in [0, 1) falls on.
inline std::int32_t draw(std::span<const float> logits, const SampleOptions& o, float uniform) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  if (o.top_k > 0 && o.top_k < static_cast<std::int64_t>(order.size())) order.resize(static_cast<std::size_t>(o.top_k));
  if (o.temperature <= 0) return order[0];
  std::vector<double> weights;
  const double top = static_cast<double>(logits[static_cast<std::size_t>(order[0])]);
  for (auto token : order)
    weights.push_back(std::exp((static_cast<double>(logits[static_cast<std::size_t>(token)]) - top) /
                               static_cast<double>(o.temperature)));
  double left = static_cast<double>(uniform) * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t i = 0; i < order.size(); ++i)
    if ((left -= weights[i]) < 0) return order[i];
  return order.back();
}

/// `count` tokens after `prompt` (at least one token), seeing the last `sequence` ones. Every rank calls it. A
/// collective.
template <class Model>
std::vector<std::int32_t> sample(Model& model, std::vector<std::int32_t> prompt, std::int64_t count,
                                 std::int64_t sequence, std::int64_t vocabulary, const SampleOptions& options = {}) {
  if (prompt.empty()) throw ConfigError("a sample needs a prompt of at least one token");
  Tensor<std::int32_t, 2> tokens(
      {1, sequence},
      model.device().pool().take_persistent(static_cast<std::size_t>(sequence) * sizeof(std::int32_t), Purpose::buffers));
  std::vector<float> logits(static_cast<std::size_t>(vocabulary));
  std::vector<std::int32_t> result, seen_tokens;
  const Random random(options.seed, RandomPurpose::sampling, 0, static_cast<std::uint64_t>(model.step()));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto seen = std::min<std::int64_t>(static_cast<std::int64_t>(prompt.size()), sequence);
    seen_tokens.assign(static_cast<std::size_t>(sequence), 0);  // what stands behind the last token is not looked at
    std::copy(prompt.end() - seen, prompt.end(), seen_tokens.begin());
    model.device().upload(tokens.data(), seen_tokens.data(), seen_tokens.size() * sizeof(std::int32_t));
    const std::int64_t row = seen - 1;
    model.logits(tokens, {&row, 1}, logits);
    result.push_back(draw(logits, options, random.uniform(static_cast<std::uint64_t>(i))));
    prompt.push_back(result.back());
  }
  return result;
}

}  // namespace zeropp
