// SPDX-License-Identifier: Apache-2.0
// The version of the library, and whether this build checks itself.
#pragma once

namespace zeropp {

inline constexpr int version_major = 0;
inline constexpr int version_minor = 1;
inline constexpr int version_patch = 0;

/// Checked builds poison fresh memory and compare fingerprints of every collective over all ranks, also where that
/// costs a message of its own (MPI). Defined by the target `zeropp::checked`; the same for every file of a program.
#ifdef ZEROPP_CHECKED
inline constexpr bool checked = true;
#else
inline constexpr bool checked = false;
#endif

}  // namespace zeropp
