// SPDX-License-Identifier: Apache-2.0
// A residual adds what its layers return to what they are given.
#include <zeropp/device/cpu.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/residual.hpp>

using namespace zeropp;

#ifdef REFUSED
// refused: Residual<...>: the output of the layers inside is added to their input; both must be of one type
using Model = Residual<GptEmbedding, Linear>;
#else
using Model = Sequential<GptEmbedding, Linear>;
#endif

auto use(Context<Cpu, Fp32>& ctx, Model& model, Tensor<std::int32_t, 2> x) { return ctx.forward(model, x).output; }
