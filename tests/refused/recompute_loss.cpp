// SPDX-License-Identifier: Apache-2.0
// A head is not recomputed: its loss is known only after its own backward.
#include <zeropp/device/cpu.hpp>
#include <zeropp/layers/lm_head.hpp>
#include <zeropp/layers/recompute.hpp>

using namespace zeropp;

#ifdef REFUSED
// refused: Recompute<L>: L ends in a loss, which is known only after its own backward
using Head = Recompute<LmHead>;
#else
using Head = LmHead;
#endif

double use(Context<Cpu, Fp32>& ctx, Head& head, Tensor<float, 3> x) { return ctx.forward(head, x).output.sum(); }
