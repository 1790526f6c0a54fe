// SPDX-License-Identifier: Apache-2.0
#include "train.hpp"

namespace mini_gpt {
template Plan plan_of<Fp32>(const Settings&, const Mesh&);
template int train<Fp32>(const Settings&, const World&, const Data&);
}  // namespace mini_gpt
