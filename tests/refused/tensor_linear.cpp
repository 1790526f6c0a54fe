// SPDX-License-Identifier: Apache-2.0
// A Linear can be split in two ways; in a Sequential it does not say in which.
#include <zeropp/device/cpu.hpp>
#include <zeropp/parallel/tensor/tensor_parallel.hpp>

using namespace zeropp;

#ifdef REFUSED
// refused: TensorParallel: a Linear alone does not say how it is split; use Mlp, or specialise TensorParallel
using Model = Sequential<LayerNorm, Linear>;
#else
using Model = Sequential<LayerNorm, Mlp>;
#endif

TensorParallel<Model> use(const Comm& comm, Model model) {
  return {{.comm = comm, .sequence_parallel = true}, std::move(model)};
}
