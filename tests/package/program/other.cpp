// SPDX-License-Identifier: Apache-2.0
// The second file of the program.
#include <zeropp/zero.hpp>

std::uint32_t other_bits(std::uint64_t index) { return zeropp::Random{7, zeropp::RandomPurpose::test}.bits(index); }

[[noreturn]] void other_throws() { throw zeropp::DataError(zeropp::text("asked for ", 3, ", found ", 2)); }
