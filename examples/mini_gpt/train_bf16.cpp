// SPDX-License-Identifier: Apache-2.0
#include "train.hpp"

namespace mini_gpt {
template Plan plan_of<Bf16>(const Settings&, const Mesh&);
template int train<Bf16>(const Settings&, const World&, const Data&);
}  // namespace mini_gpt
