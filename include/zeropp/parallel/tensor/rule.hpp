// SPDX-License-Identifier: Apache-2.0
// `TensorParallel<L>`: the layer L computed together by the ranks of a group, each holding a part of its weights.
// Built from the whole layer, which costs nothing before memory is placed:
//
//   TensorParallel net{TensorOptions{.comm = mesh.tensor(), .sequence_parallel = true}, Gpt{config}};
//   Sharded<TensorParallel<Gpt>, Stage::gradients> model{mesh, device, std::move(net)};
//
// How a layer is shared is its rule, a specialisation; containers map to the same containers of TensorParallel
// children. Shoeybi et al., "Megatron-LM", 2019 (arXiv 1909.08053); with .sequence_parallel, activations between the
// split products are shared too: Korthikanti et al., "Reducing activation recomputation", 2022 (arXiv 2205.05198). A
// parameter keeps its name, and the numbers it would have in the whole. One rank computes the unsplit bits.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include <zeropp/comm/comm.hpp>
#include <zeropp/layers/linear.hpp>

namespace zeropp {

struct TensorOptions {
  Comm comm;  ///< the ranks that share each layer; every one of them runs the same batch
  /// Between the split products each rank holds [B, T / ranks, C] instead of [B, T, C]; the ranks divide T.
  bool sequence_parallel = false;
};

/// How ranks share a Linear. columns: each has some outputs, whole inputs give split outputs. rows: each has some
/// inputs, split inputs give the whole output, summed over ranks.
enum class SplitBy { none, columns, rows };

/// The rule of L. Your own: a specialisation with a constructor from (TensorOptions, L), made of rules and TensorGroup.
template <class L, SplitBy S = SplitBy::none>
struct TensorParallel {
  TensorParallel(const TensorOptions&, L) {
    static_assert(
        !std::is_same_v<L, Linear>,
        "TensorParallel: a Linear alone does not say how it is split; use Mlp, or specialise TensorParallel for the "
        "layer around it, with TensorParallel<Linear, SplitBy::columns> and TensorParallel<Linear, SplitBy::rows>");
    static_assert(!detail::around_model<L>,
                  "TensorParallel<PipelineStage<L>> and TensorParallel<Sharded<L>>: layers are shared first; write "
                  "Sharded<PipelineStage<TensorParallel<L>>, Stage>");
    static_assert(
        std::is_same_v<L, Linear> || detail::around_model<L>,
        "TensorParallel<L>: no rule says how ranks share this layer; specialise TensorParallel<YourLayer>, or declare "
        "`static constexpr LayerTraits traits{.per_position = true}` in it if it computes each position alone");
  }

  // So that compilers say no more than that.
  std::array<Parameter*, 0> parameters() { return {}; }
  template <class C, class X>
  auto forward(C&, X x) {
    return Forward{std::move(x), None{}};
  }
  template <class C, class D>
  auto backward(C&, D dy, None) {
    return dy;
  }
};

template <class L>
TensorParallel(TensorOptions, L) -> TensorParallel<L>;

}  // namespace zeropp
