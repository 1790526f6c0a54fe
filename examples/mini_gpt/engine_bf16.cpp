// SPDX-License-Identifier: Apache-2.0
#include "build_engine.hpp"

namespace mini_gpt {
template Engine<Bf16, Cpu> build_engine(const Settings&, const Mesh&, Cpu&);
}  // namespace mini_gpt
