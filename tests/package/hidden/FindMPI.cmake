# SPDX-License-Identifier: Apache-2.0
# What CMake's own module leaves behind on a machine with an MPI wrapper but no mpi.h: a target, and found it is not.
if(NOT TARGET MPI::MPI_CXX)
  add_library(MPI::MPI_CXX INTERFACE IMPORTED)
endif()
set(MPI_CXX_FOUND FALSE)
set(MPI_FOUND FALSE)
