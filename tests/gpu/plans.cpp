// SPDX-License-Identifier: Apache-2.0
// Plans of GPU runs, as text: by the host's compiler and by nvcc they are the same to the byte, as trainers plan in
// files of either. Needs no GPU.
#include <cstdio>
#include <string>

#include <zeropp/device/cuda.hpp>
#include <zeropp/train/plan.hpp>

#include "../support/tiny_gpt.hpp"

namespace {

using namespace test;

/// For heads of 64 and of 24 elements, which run by other kernels.
template <Stage S, Precision P>
void print_plans(int ranks, const MeshOptions& mesh = {}, ContextAttention attention = ContextAttention::ulysses) {
  for (const std::int64_t head : {64, 24}) {
    const TinyConfig config{.vocabulary = 1003, .sequence = 64, .width = 4 * head, .heads = 4, .layers = 2};
    const auto plan =
        zeropp::plan<P, DryCuda>(Mesh{dry_comm(0, ranks), mesh}, Plain{config},
                                 {.rows = 8, .sequence = 64, .stage = S, .sharded = {.context_attention = attention}});
    std::printf("%s, %d ranks, heads of %d: %zu B = kept %s; at the peak %s\n", std::string(P::name).c_str(), ranks,
                static_cast<int>(head), plan.total, describe(plan.kept).c_str(), describe(plan.peak).c_str());
  }
}

}  // namespace

int main() {
  print_plans<Stage::none, Bf16>(1);
  print_plans<Stage::parameters, Fp32>(3);
  print_plans<Stage::gradients, Fp16>(2, {.context = 2});
  print_plans<Stage::gradients, Bf16>(4, {.context = 4}, ContextAttention::ring);
}
