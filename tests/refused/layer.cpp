// SPDX-License-Identifier: Apache-2.0
// Layers that are wrong by themselves or in their place. Each is refused in one error, in a sentence of the library.
// The cases are numbered: REFUSED says which of them is compiled.
#include <array>

#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/layer_norm.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/mlp.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/residual.hpp>
#include <zeropp/layers/sequential.hpp>
#include <zeropp/parallel/sharding/sharded.hpp>

using namespace zeropp;

#ifndef REFUSED
#define REFUSED 0
#endif

struct NoParameters {
  std::array<Parameter*, 0> parameters() { return {}; }
};
struct Identity : NoParameters {
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    return Forward{x, None{}};
  }
  template <class C, class T>
  auto backward(C&, Tensor<T, 3> dy, None) {
    return dy;
  }
};

struct Middle : Identity {
#if REFUSED == 1  // refused 1: forward(ctx, x) of a layer must return Forward{output, saved}
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    return x;
  }
#elif REFUSED == \
    2  // refused 2: forward(ctx, x) of a layer does not take what the layer before it hands on: x comes by value
  template <class C, class T>
  auto forward(C&, Tensor<T, 3>& x) {
    return Forward{x, None {}};
  }
#elif REFUSED == 3  // refused 3: a layer needs backward(ctx, dy, saved) that takes the gradient of its output
  template <class C, class T>
  auto backward(C&, Tensor<T, 3> dy, Tensor<T, 3>) {
    return dy;
  }
#elif REFUSED == 4  // refused 4: backward(ctx, dy, saved) of a layer must return the gradient of its input
  template <class C, class T>
  void backward(C&, Tensor<T, 3>, None) {}
#elif REFUSED == 5  // refused 5: parameters() of a layer returns pointers to its parameters
  Parameter gain{.name = "gain", .shape = { 32 }};
  auto parameters() { return std::array{gain}; }
#elif REFUSED == 6  // refused 6: parameters() of a layer cannot be called: declare it public and without arguments
  Parameter gain{.name = "gain", .shape = { 32 }};
  Mlp inner{"mlp", 32, 64};
  auto parameters(int) { return std::array{&gain}; }
#elif REFUSED == 7  // refused 7: for_each_child of a layer gives const children
  Mlp inside{"mlp", 32, 64};
  template <class F>
  void for_each_child(F f) const {
    f(inside);
  }
#elif REFUSED == 8  // refused 8: a layer's traits are `static constexpr LayerTraits traits{...}`
  static constexpr bool traits = true;
#endif
};

/// A layer that does not derive from another with a backward.
struct Alone : NoParameters {
  template <class C, class T>
  auto forward(C&, Tensor<T, 3> x) {
    return Forward{x, None{}};
  }
#if REFUSED != 9  // refused 9: a layer needs backward(ctx, dy, saved) that takes the gradient of its output
  template <class C, class T>
  auto backward(C&, Tensor<T, 3> dy, None) {
    return dy;
  }
#endif
};

/// Takes float, whatever the precision.
struct OfFloat : NoParameters {
  template <class C>
  auto forward(C&, Tensor<float, 3> x) {
    return Forward{x, None{}};
  }
  template <class C>
  auto backward(C&, Tensor<float, 3> dy, None) {
    return dy;
  }
};

struct Block : Sequential<Residual<LayerNorm, Mlp>> {
  Block() : Sequential{Residual<LayerNorm, Mlp>{LayerNorm{"ln", 32}, Mlp{"mlp", 32, 64}}} {}
};
inline GptEmbedding embedding() { return GptEmbedding{{.vocabulary = 64, .width = 32}}; }
inline LmHead head() { return LmHead{"head", 64, 32}; }
inline LayerNorm norm() { return LayerNorm{"norm", 32}; }

#if REFUSED == 10  // refused 10: forward(ctx, x) of a layer does not take what the layer before it hands on
using Model = Sequential<GptEmbedding, LmHead, LayerNorm>;  // a head in the middle
inline Model model() { return {embedding(), head(), norm()}; }
#elif REFUSED == 11  // refused 11: forward(ctx, x) of a layer does not take what the layer before it hands on
using Model = Sequential<Repeat<Block>, LayerNorm, LmHead>;  // no embedding
inline Model model() { return {{{Block{}}}, norm(), head()}; }
#elif REFUSED == 12  // refused 12: train() and evaluate() need a model that ends in a loss
using Model = Sequential<GptEmbedding, Repeat<Block>, LayerNorm>;
inline Model model() { return {embedding(), {{Block{}}}, norm()}; }
#elif REFUSED == 13  // refused 13: forward(ctx, x) of a layer does not take what the layer before it hands on
using Model = Sequential<GptEmbedding, OfFloat, LmHead>;  // in a precision of bf16
inline Model model() { return {embedding(), OfFloat{}, head()}; }
#else
using Model = Sequential<GptEmbedding, Middle, Alone, OfFloat, Repeat<Block>, LayerNorm, LmHead>;
inline Model model() { return {embedding(), Middle{}, Alone{}, OfFloat{}, {{Block{}}}, norm(), head()}; }
#endif

double use(Comm comm, Cpu& cpu, const Batch& batch) {
  using Chosen = std::conditional_t<REFUSED == 13, Bf16, Fp32>;
  Sharded<Model, Stage::gradients, Chosen> sharded{comm, cpu, model()};
  return sharded.train(batch).mean();
}
