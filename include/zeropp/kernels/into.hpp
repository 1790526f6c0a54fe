// SPDX-License-Identifier: Apache-2.0
// How a kernel treats the values already in its result: overwrite them, or add to them.
#pragma once

namespace zeropp::kernels {

enum class Into { overwrite, add };

}  // namespace zeropp::kernels
