// SPDX-License-Identifier: Apache-2.0
// The feed-forward half of a GPT-2 block: widen, Gelu, narrow.
#pragma once

#include <string>

#include <zeropp/layers/gelu.hpp>
#include <zeropp/layers/linear.hpp>
#include <zeropp/layers/sequential.hpp>

namespace zeropp {

struct MlpOptions {
  bool bias = true;
  float init_std = 0.02f, projection_std = 0.02f;
};

/// Children NAME.c_fc [hidden, width] and NAME.c_proj [width, hidden].
struct Mlp : Sequential<Linear, Gelu, Linear> {
  Mlp(const std::string& name, std::int64_t width, std::int64_t hidden, MlpOptions o = {})
      : Sequential{Linear{name + ".c_fc", width, hidden, {.bias = o.bias, .init_std = o.init_std}}, Gelu{},
                   Linear{name + ".c_proj", hidden, width, {.bias = o.bias, .init_std = o.projection_std}}} {}
};

}  // namespace zeropp
