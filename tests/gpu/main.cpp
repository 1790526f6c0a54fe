// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <zeropp/device/cuda.hpp>

int main(int argc, char** argv) {
  if (zeropp::cuda_devices() == 0) {
    std::puts("skipped: this machine has no GPU");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
