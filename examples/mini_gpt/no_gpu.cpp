// SPDX-License-Identifier: Apache-2.0
#include "gpu.hpp"

namespace mini_gpt::gpu {

namespace {
[[noreturn]] void refuse() {
  throw ConfigError(
      "--backend cuda: this mini_gpt was built without CUDA; install the CUDA Toolkit, so that cmake finds "
      "nvcc, and build it again, or use --backend cpu");
}
}  // namespace

int count() { return -1; }
std::string precisions() { refuse(); }
std::string room() { refuse(); }
Plan plan(const Settings&, const Mesh&) { refuse(); }
int train(const Settings&, const World&, const Data&) { refuse(); }
std::string describe(const Settings&, const World&) { refuse(); }

}  // namespace mini_gpt::gpu
