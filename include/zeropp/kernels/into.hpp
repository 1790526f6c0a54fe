// SPDX-License-Identifier: Apache-2.0
// What a kernel does with what is already in its result.
#pragma once

namespace zeropp::kernels {

enum class Into { overwrite, add };

}  // namespace zeropp::kernels
