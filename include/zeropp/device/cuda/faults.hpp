// SPDX-License-Identifier: Apache-2.0
// Faults that kernels find in their data: kernels cannot throw, so they leave a note in host memory, and the host
// throws the sentence where it waits next.
#pragma once

#include <cstdint>

#include <zeropp/base/error.hpp>

namespace zeropp {

/// Lives in mapped host memory. A kernel writes `value` and `place` first, then `kind`; the first one or any of the
/// first ones counts.
struct CudaFaults {
  enum Kind : std::int32_t { none = 0, token = 1, label = 2 };
  volatile std::int32_t kind = none;
  volatile std::int64_t value = 0;  ///< the token or label found
  volatile std::int64_t place = 0;  ///< its place in the batch
  volatile std::int64_t limit = 0;  ///< the vocabulary
};

/// A note in words.
inline DataError error_of(const CudaFaults& faults) {
  return DataError(text(faults.kind == CudaFaults::token ? "token " : "label ", faults.value, " at place ",
                        faults.place, " of the batch is outside the vocabulary of ", faults.limit,
                        "; were the data made with another tokenizer?"));
}

}  // namespace zeropp
