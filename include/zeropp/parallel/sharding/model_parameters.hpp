// SPDX-License-Identifier: Apache-2.0
// The parameters of a whole model, wherever they lie: known on every rank without a word to the others.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zeropp/layers/layer.hpp>

namespace zeropp {

struct ModelParameter {
  std::string name;                 ///< unique in the model
  std::vector<std::int64_t> shape;  ///< of the whole tensor
  bool split = false;               ///< shared by the tensor ranks
  int stage = 0;                    ///< of the pipeline
  std::int64_t size() const { return element_count(shape); }
};

/// Elements of all of them.
inline std::int64_t count_of(const std::vector<ModelParameter>& parameters) {
  std::int64_t count = 0;
  for (auto& p : parameters) count += p.size();
  return count;
}

/// The parameters of a model that no pipeline cuts, in the order of its forward; tied ones are left out.
template <class L>
std::vector<ModelParameter> parameters_of(L& layer) {
  std::vector<ModelParameter> all;
  visit_parameters(layer, [&](Parameter& p) {
    if (p.tied_to.empty()) all.push_back({p.name, p.whole_shape(), p.split()});
  });
  return all;
}

}  // namespace zeropp
