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
set(ZEROPP_MARCH native CACHE STRING "-march of our own programs; a portable one for programs that run elsewhere")
target_compile_options(zeropp_own INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Werror -march=${ZEROPP_MARCH})

# Tokenizers of other libraries cut texts by regular expressions with Unicode classes. Without libpcre2 programs say so
# where a text must be cut; `zeropp_pcre2` is then empty.
find_path(ZEROPP_PCRE2_INCLUDE_DIR pcre2.h DOC "Folder of pcre2.h")
find_library(ZEROPP_PCRE2_LIBRARY pcre2-8 DOC "libpcre2-8.so")
mark_as_advanced(ZEROPP_PCRE2_INCLUDE_DIR ZEROPP_PCRE2_LIBRARY)
set(zeropp_pcre2 "")
if(ZEROPP_PCRE2_INCLUDE_DIR AND ZEROPP_PCRE2_LIBRARY)
  set(zeropp_pcre2 zeropp_own_pcre2)
  add_library(zeropp_own_pcre2 INTERFACE)
  target_include_directories(zeropp_own_pcre2 SYSTEM INTERFACE ${ZEROPP_PCRE2_INCLUDE_DIR})
  target_link_libraries(zeropp_own_pcre2 INTERFACE ${ZEROPP_PCRE2_LIBRARY})
  target_compile_definitions(zeropp_own_pcre2 INTERFACE ZEROPP_PCRE2 PCRE2_CODE_UNIT_WIDTH=8)
else()
  message(STATUS "libpcre2-dev is not installed: mini_gpt will not encode texts with tokenizers of other libraries")
endif()

# Engines on GPUs are compiled by nvcc, for Hopper unless CMAKE_CUDA_ARCHITECTURES says otherwise. Its front end knows
# neither GCC's unroll pragma (1675) nor that a variable may serve one branch of an `if constexpr` only (177).
if(TARGET zeropp_cuda)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES OR CMAKE_CUDA_ARCHITECTURES STREQUAL "native")
    set(CMAKE_CUDA_ARCHITECTURES 90a)
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O1 -DNDEBUG")  # of the host's code, a third of the time; kernels are optimised anyway
  if(ZEROPP_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${ZEROPP_CCACHE})
  endif()
  add_library(zeropp_own_gpu INTERFACE)
  target_link_libraries(zeropp_own_gpu INTERFACE zeropp_cuda $<TARGET_NAME_IF_EXISTS:zeropp_nccl>)
  target_compile_options(zeropp_own_gpu INTERFACE -Werror=all-warnings -diag-suppress=1675,177
    -Xcompiler=-Wall,-Wextra,-Werror,-march=${ZEROPP_MARCH})
  # Kernels of attention take a minute as well, and every engine needs them: one object for all programs of ours.
  add_library(zeropp_own_attention OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/cmake/attention.cu)
  target_link_libraries(zeropp_own_attention PRIVATE zeropp_own_gpu)
  if(TARGET zeropp_cudnn)  # takes a minute: one object for all programs of ours
    add_library(zeropp_own_cudnn OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tests/gpu/cudnn.cpp)
    target_link_libraries(zeropp_own_cudnn PRIVATE zeropp_own zeropp_cudnn)
    target_compile_options(zeropp_own_cudnn PRIVATE -O1)
  endif()
endif()

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

# A program of ours on a GPU, of .cu files, with NCCL where it is there.
#   zeropp_gpu_program(name sources...)
function(zeropp_gpu_program name)
  add_executable(${name} ${ARGN})
  target_compile_definitions(${name} PRIVATE ZEROPP_ATTENTION_ELSEWHERE)
  target_sources(${name} PRIVATE $<TARGET_OBJECTS:zeropp_own_attention>)
  target_link_libraries(${name} PRIVATE zeropp_own_gpu)
endfunction()

# The part of a program of ours that nvcc compiles.
#   zeropp_gpu_objects(name sources...)
function(zeropp_gpu_objects name)
  add_library(${name}_gpu OBJECT ${ARGN})
  target_compile_definitions(${name}_gpu PRIVATE ZEROPP_ATTENTION_ELSEWHERE)
  target_link_libraries(${name}_gpu PRIVATE zeropp_own_gpu)
  target_sources(${name} PRIVATE $<TARGET_OBJECTS:zeropp_own_attention>)
  target_link_libraries(${name} PRIVATE ${name}_gpu zeropp_cuda $<TARGET_NAME_IF_EXISTS:zeropp_nccl>)
endfunction()

# Attention by cuDNN for a program of ours, where there is cuDNN.
function(zeropp_with_cudnn name)
  if(TARGET zeropp_own_cudnn)
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:zeropp_own_cudnn>)
    target_link_libraries(${name} PRIVATE zeropp_cudnn)
  endif()
endfunction()
