// SPDX-License-Identifier: Apache-2.0
// A shared library that uses zeropp; built twice, with NAME as left_bits and as right_bits.
#include <zeropp/zero.hpp>

std::uint32_t NAME(std::uint64_t index) { return zeropp::Random{7, zeropp::RandomPurpose::test}.bits(index); }
