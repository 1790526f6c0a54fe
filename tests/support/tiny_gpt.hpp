// SPDX-License-Identifier: Apache-2.0
// A small GPT-2 with odd sizes, and a training run of it that returns everything that must be equal bit for bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include <zeropp/layers/attention.hpp>
#include <zeropp/layers/dropout.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/recompute.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/train/optimizers/fused_adam.hpp>

namespace test {

using namespace zeropp;

struct TinyConfig {
  std::int64_t vocabulary = 61, sequence = 12, width = 24, heads = 3, layers = 3;
  float dropout = 0.1f;
};

struct Block : Sequential<Residual<LayerNorm, CausalSelfAttention, Dropout>, Residual<LayerNorm, Mlp, Dropout>> {
  Block(const TinyConfig& c, const std::string& h)
      : Sequential{
            {LayerNorm{h + "ln_1", c.width}, CausalSelfAttention{h + "attn", {.width = c.width, .heads = c.heads}},
             Dropout{h + "drop_1", c.dropout}},
            {LayerNorm{h + "ln_2", c.width}, Mlp{h + "mlp", c.width, 4 * c.width}, Dropout{h + "drop_2", c.dropout}}} {}
};

template <class B>
struct Gpt : Sequential<GptEmbedding, Repeat<B>, LayerNorm, LmHead> {
  explicit Gpt(const TinyConfig& c)
      : Sequential<GptEmbedding, Repeat<B>, LayerNorm, LmHead>{
            GptEmbedding{{.vocabulary = c.vocabulary, .sequence = c.sequence, .width = c.width}}, blocks(c),
            LayerNorm{"ln_f", c.width}, LmHead{"lm_head", c.vocabulary, c.width, {.tied_to = "wte.weight"}}} {}
  static Repeat<B> blocks(const TinyConfig& c) {
    Repeat<B> all;
    for (std::int64_t i = 0; i < c.layers; ++i) all.children.push_back(B{Block{c, text("h.", i, ".")}});
    return all;
  }
};
using Plain = Gpt<Block>;
using Recomputed = Gpt<Recompute<Block>>;

struct RunOptions {
  std::int64_t rows = 10, micro_batches = 1;
  int steps = 4;
  Reduction reduction = Reduction::every_micro_batch;
  int prefetch = 0;
  std::size_t bucket_bytes = 1 << 12;
  int threads = 1;
  float loss_scale = 1;
  bool graph = false;
  TinyConfig config = {};
};

/// The results that must be equal bit for bit.
struct Record {
  std::string steps;                           ///< the bytes of losses and norms
  std::map<std::string, std::string> weights;  ///< of this rank's units, by the name of the first parameter
};

/// Trains `model`; `data` is the communicator of its data axis.
template <class Model>
Record record(Model& model, const Comm& data, const RunOptions& o) {
  FusedAdam adam{model, {}};
  const auto begin = part_begin(o.rows, data.rank(), data.size()),
             end = part_begin(o.rows, data.rank() + 1, data.size());
  auto batch = Batch::on(model.device(), end - begin, o.config.sequence);
  batch.first_sample = begin;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch.tokens.size())), labels(tokens.size());
  Record out;
  auto put = [&](const auto& value) { out.steps.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (int step = 0; step < o.steps; ++step) {
    const Random random(5, RandomPurpose::test, 0, static_cast<std::uint64_t>(step));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto at = static_cast<std::uint64_t>(begin * o.config.sequence) + i;
      tokens[i] = static_cast<std::int32_t>(random.bits(at) % static_cast<std::uint32_t>(o.config.vocabulary));
      labels[i] = static_cast<std::int32_t>((random.bits(at) + 1) % static_cast<std::uint32_t>(o.config.vocabulary));
    }
    batch.fill(tokens, labels);
    const auto loss = model.train(batch, {.micro_batches = o.micro_batches, .loss_scale = o.loss_scale}).mean();
    const auto clip = clip_by_global_norm(model, 1.0f);
    adam.step(3e-3f, clip);
    put(loss);
    put(clip.norm());
  }
  if (o.steps > 0) put(model.evaluate(batch).mean());
  for (auto& unit : model.units()) {
    auto lease = unit.lease();
    auto whole = unit.whole().first(static_cast<std::size_t>(unit.size()));
    auto& bytes = out.weights[unit.parameters().front()->name];
    bytes.resize(whole.size_bytes());
    model.device().download(bytes.data(), whole.data(), bytes.size());
  }
  return out;
}

template <class D>
D device_for(const RunOptions& o) {
  if constexpr (std::is_same_v<D, Cpu>)
    return D{{.threads = o.threads}};
  else
    return D{};
}

/// The bytes of losses, norms and final weights: equal runs are equal strings.
template <class G, class P = Fp32, class D = Cpu>
std::string train(Stage stage, const Comm& comm, const RunOptions& o = {}) {
  D device = device_for<D>(o);
  ShardedEngine<G, P, D> model{
      comm,
      device,
      G{o.config},
      stage,
      {.reduction = o.reduction, .prefetch = o.prefetch, .bucket_bytes = o.bucket_bytes, .graph = o.graph}};
  auto [bytes, weights] = record(model, comm, o);
  for (auto& [name, unit] : weights) bytes += unit;
  return bytes;
}

template <class G, Stage S, class P = Fp32, class D = Cpu>
std::string train(const Comm& comm, const RunOptions& o = {}) {
  return train<G, P, D>(S, comm, o);
}

inline constexpr Stage all_stages[] = {Stage::none, Stage::optimizer_states, Stage::gradients, Stage::parameters};

}  // namespace test
