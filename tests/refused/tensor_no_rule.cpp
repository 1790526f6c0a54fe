// SPDX-License-Identifier: Apache-2.0
// Tensor ranks cannot guess how to share a layer that has no rule.
#include <array>

#include <zeropp/parallel/sharding/sharded.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>

using namespace zeropp;

struct Scale {
#ifndef REFUSED
  static constexpr LayerTraits traits{.per_position = true};
#endif
  // refused: TensorParallel<L>: no rule says how ranks share this layer; specialise TensorParallel<YourLayer>, or
  Parameter weight{.name = "scale", .shape = {1}};
  auto parameters() { return std::array{&weight}; }
  template <class C>
  auto forward(C&, Tensor<float, 3> x) {
    return Forward{x, None{}};
  }
  template <class C>
  auto backward(C&, Tensor<float, 3> dy, None) {
    return dy;
  }
};

struct Block : Sequential<LayerNorm, Scale> {
  Block() : Sequential{LayerNorm{"ln", 8}, Scale{}} {}
};

std::int64_t use(Comm data, Comm tensor, Cpu& cpu) {
  Sharded<TensorParallel<Block>, Stage::none> model{data, cpu, {{.comm = tensor}, Block{}}};
  return model.parameters();
}
