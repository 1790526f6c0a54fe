// SPDX-License-Identifier: Apache-2.0
// The elements of a Repeat follow one another.
#include <zeropp/device/cpu.hpp>
#include <zeropp/layers/embedding.hpp>
#include <zeropp/layers/repeat.hpp>
#include <zeropp/layers/sequential.hpp>

using namespace zeropp;

#ifdef REFUSED
// refused: Repeat<L>: the output of each element is the input of the next; both must be of one type
using Model = Repeat<GptEmbedding>;
#else
using Model = Sequential<GptEmbedding>;
#endif

auto use(Context<Cpu, Fp32>& ctx, Model& model, Tensor<std::int32_t, 2> x) { return ctx.forward(model, x).output; }
