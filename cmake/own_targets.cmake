# SPDX-License-Identifier: Apache-2.0
# How our own programs are built (tests, examples, benchmarks): warnings as errors, this machine's instructions,
# sanitizers on demand. None of it reaches a project that uses zeropp.
if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)  # for clang-tidy and editors
  find_program(ZEROPP_CCACHE ccache DOC "Compiler cache; leave empty for none")
  mark_as_advanced(ZEROPP_CCACHE)
  if(ZEROPP_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${ZEROPP_CCACHE})
  endif()
endif()

set(CMAKE_CXX_EXTENSIONS OFF)
add_library(zeropp_own INTERFACE)
target_link_libraries(zeropp_own INTERFACE zeropp)
target_compile_options(zeropp_own INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Werror -march=native)

if(ZEROPP_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
elseif(ZEROPP_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread -g1)
elseif(ZEROPP_SANITIZE)
  message(FATAL_ERROR "ZEROPP_SANITIZE is '${ZEROPP_SANITIZE}'; it can be address (with undefined behaviour), thread, "
                      "or empty")
endif()
if(ZEROPP_SANITIZE)
  target_compile_options(zeropp_own INTERFACE ${sanitize})
  target_link_options(zeropp_own INTERFACE ${sanitize})
endif()

# A program of ours. With MPI where it is there, if asked for.
#   zeropp_program(name [MPI] sources...)
function(zeropp_program name)
  cmake_parse_arguments(PARSE_ARGV 1 program "MPI" "" "")
  add_executable(${name} ${program_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE zeropp_own)
  if(program_MPI AND TARGET zeropp_mpi)
    target_link_libraries(${name} PRIVATE zeropp_mpi)
  endif()
endfunction()
