// SPDX-License-Identifier: Apache-2.0
// A sharded model behind what a training loop calls, whatever its layers and stage. A loop that is given one compiles
// once for all of them, and apart from the engine: for GPUs by the host's compiler, where nvcc compiles the engine.
//
//   std::unique_ptr<ShardedModel<Bf16, Cuda>> build(const Mesh& mesh, Cuda& device, const Config& config) {
//     using Engine = ShardedEngine<Gpt, Bf16, Cuda>;  // in a .cu file
//     return std::make_unique<ShardedModelOf<Engine>>(mesh, device, Gpt{config}, Stage::parameters);
//   }
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include <zeropp/layers/loss.hpp>
#include <zeropp/parallel/sharding/sharded_state.hpp>

namespace zeropp {

template <Precision P, Device D>
class ShardedModel {
 public:
  ShardedModel() = default;
  ShardedModel(const ShardedModel&) = delete;
  ShardedModel& operator=(const ShardedModel&) = delete;
  virtual ~ShardedModel() = default;

  /// For optimizers and checkpoints.
  virtual ShardedState<P, D>& state() = 0;
  D& device() { return state().device(); }
  std::int64_t step() { return state().step(); }
  std::int64_t parameters() { return state().parameters(); }

  /// These are collectives, and as in `Sharded`.
  virtual Loss train(const Batch& whole, TrainOptions options = {}) = 0;
  virtual Loss evaluate(const Batch& whole) = 0;
  virtual ClipResult clip_gradients(float max_norm) = 0;
  virtual void logits(const Tensor<std::int32_t, 2>& tokens, std::span<const std::int64_t> rows,
                      std::span<float> out) = 0;
};

/// M: a ShardedEngine or a Sharded, which it makes of what it is given.
template <class M>
class ShardedModelOf final : public ShardedModel<typename M::Precision, typename M::Device> {
 public:
  template <class... Arguments>
  explicit ShardedModelOf(Arguments&&... arguments) : model_(std::forward<Arguments>(arguments)...) {}

  ShardedState<typename M::Precision, typename M::Device>& state() override { return model_; }
  Loss train(const Batch& whole, TrainOptions options) override { return model_.train(whole, options); }
  Loss evaluate(const Batch& whole) override { return model_.evaluate(whole); }
  ClipResult clip_gradients(float max_norm) override { return model_.clip_gradients(max_norm); }
  void logits(const Tensor<std::int32_t, 2>& tokens, std::span<const std::int64_t> rows,
              std::span<float> out) override {
    model_.logits(tokens, rows, out);
  }

 private:
  M model_;
};

}  // namespace zeropp
