// SPDX-License-Identifier: Apache-2.0
// The argument that launch (comm/launch.hpp) gives to the body of a program.
#pragma once

#include <string>

#include <zeropp/comm/comm.hpp>

namespace zeropp {

/// A rank and its place among the others. Converts to the rank's communicator.
struct World {
  Comm comm;
  int rank = 0;
  int size = 1;
  int local_rank = 0;  ///< among the ranks of this host: the device to take
  std::string source;  ///< what said how many ranks there are: "--ranks 4", "torchrun", "mpirun (Open MPI)"

  operator const Comm&() const { return comm; }
};

}  // namespace zeropp
