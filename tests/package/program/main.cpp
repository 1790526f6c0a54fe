// SPDX-License-Identifier: Apache-2.0
// The same library in two files and two shared libraries of one program: same numbers, and errors that cross.
#include <zeropp/zero.hpp>

#include <cstdio>
#include <cstring>

std::uint32_t left_bits(std::uint64_t index);
std::uint32_t right_bits(std::uint64_t index);
std::uint32_t other_bits(std::uint64_t index);
[[noreturn]] void other_throws();

int main() {
  const auto mine = zeropp::Random{7, zeropp::RandomPurpose::test}.bits(5);
  if (left_bits(5) != mine || right_bits(5) != mine || other_bits(5) != mine) {
    std::puts("the files of one program draw different numbers");
    return 1;
  }
  try {
    other_throws();
  } catch (const zeropp::DataError& error) {
    if (std::strcmp(error.what(), "asked for 3, found 2") == 0) return 0;
    std::puts(error.what());
  }
  return 1;
}
