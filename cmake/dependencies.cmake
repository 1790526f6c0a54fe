# SPDX-License-Identifier: Apache-2.0
# Finds what `zeropp_dependencies` names, for the build and, installed beside the package's configuration, for those who
# find it. What is not there adds a sentence to `zeropp_missing`; the includer decides what to do with it.
set(zeropp_missing "")

if("threads" IN_LIST zeropp_dependencies)
  find_package(Threads QUIET)
  if(NOT TARGET Threads::Threads)
    string(APPEND zeropp_missing "zeropp needs threads (pthread), and the compiler does not link them. ")
  endif()
endif()

if("json" IN_LIST zeropp_dependencies)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.7 QUIET)
  endif()
  if(NOT TARGET nlohmann_json::nlohmann_json)
    string(APPEND zeropp_missing "zeropp needs the header nlohmann/json.hpp, found none: apt-get install "
           "nlohmann-json3-dev, or set nlohmann_json_DIR to the folder of nlohmann_jsonConfig.cmake. ")
  endif()
endif()

if("xxhash" IN_LIST zeropp_dependencies AND NOT TARGET zeropp::xxhash)
  find_path(ZEROPP_XXHASH_INCLUDE_DIR xxhash.h DOC "Folder of xxhash.h")
  mark_as_advanced(ZEROPP_XXHASH_INCLUDE_DIR)
  if(ZEROPP_XXHASH_INCLUDE_DIR)
    add_library(zeropp::xxhash INTERFACE IMPORTED)
    set_property(TARGET zeropp::xxhash PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${ZEROPP_XXHASH_INCLUDE_DIR}")
  else()
    string(APPEND zeropp_missing "zeropp needs the header xxhash.h, found none: apt-get install libxxhash-dev, or set "
           "ZEROPP_XXHASH_INCLUDE_DIR to its folder. ")
  endif()
endif()

if("mpi" IN_LIST zeropp_dependencies OR "mpi_if_found" IN_LIST zeropp_dependencies)
  if(NOT MPI_CXX_FOUND)
    set(MPI_CXX_SKIP_MPICXX ON)  # the C interface is enough; the C++ one was removed from MPI
    find_package(MPI QUIET COMPONENTS CXX)
    unset(MPI_CXX_SKIP_MPICXX)
  endif()
  # FindMPI makes the target MPI::MPI_CXX even where it finds no mpi.h: only the variable says that MPI is there.
  if(NOT MPI_CXX_FOUND AND "mpi" IN_LIST zeropp_dependencies)
    string(APPEND zeropp_missing "zeropp::mpi needs an MPI, found none: apt-get install libopenmpi-dev, or set "
           "MPI_CXX_COMPILER to its mpicxx, or do without (ZEROPP_MPI=OFF). ")
  endif()
endif()

# Distributions and containers cut the toolkit into packages, so each part that we include or link is looked for.
set(zeropp_cuda_found FALSE)
if("cuda" IN_LIST zeropp_dependencies OR "cuda_if_found" IN_LIST zeropp_dependencies)
  find_package(CUDAToolkit 12.9 QUIET)
  set(zeropp_cuda_lacks "")
  if(NOT CUDAToolkit_FOUND OR NOT TARGET CUDA::cudart)
    set(zeropp_cuda_lacks "the toolkit itself")
  else()
    if(NOT CUDAToolkit_NVCC_EXECUTABLE)
      list(APPEND zeropp_cuda_lacks nvcc)
    endif()
    if(NOT TARGET CUDA::cublasLt)
      list(APPEND zeropp_cuda_lacks libcublasLt)
    endif()
    foreach(header cublasLt.h nvtx3/nvToolsExt.h)
      find_path(ZEROPP_FOLDER_OF_${header} ${header} PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_CACHE NO_DEFAULT_PATH)
      if(NOT ZEROPP_FOLDER_OF_${header})
        list(APPEND zeropp_cuda_lacks ${header})
      endif()
      unset(ZEROPP_FOLDER_OF_${header})
    endforeach()
  endif()
  if(NOT zeropp_cuda_lacks)
    set(zeropp_cuda_found TRUE)
  elseif("cuda" IN_LIST zeropp_dependencies)
    list(JOIN zeropp_cuda_lacks ", " zeropp_cuda_lacks)
    string(APPEND zeropp_missing "zeropp::cuda needs the CUDA toolkit (12.9 or later, with nvcc, cuBLAS and NVTX), found "
           "'${CUDAToolkit_VERSION}' without ${zeropp_cuda_lacks}; install that, set CUDAToolkit_ROOT to the folder of the "
           "toolkit, or do without (ZEROPP_CUDA=OFF). ")
  endif()
  unset(zeropp_cuda_lacks)
  if(zeropp_cuda_found AND NOT TARGET zeropp::nccl_library)
    find_path(ZEROPP_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} DOC "Folder of nccl.h")
    find_library(ZEROPP_NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${CUDAToolkit_LIBRARY_DIR} DOC "libnccl.so")
    mark_as_advanced(ZEROPP_NCCL_INCLUDE_DIR ZEROPP_NCCL_LIBRARY)
    if(ZEROPP_NCCL_INCLUDE_DIR AND ZEROPP_NCCL_LIBRARY)
      add_library(zeropp::nccl_library UNKNOWN IMPORTED)
      set_target_properties(zeropp::nccl_library PROPERTIES IMPORTED_LOCATION "${ZEROPP_NCCL_LIBRARY}"
                            INTERFACE_INCLUDE_DIRECTORIES "${ZEROPP_NCCL_INCLUDE_DIR}")
    endif()
  endif()
endif()

# cuDNN comes with its library, its frontend as headers alone (from its repository or the wheel nvidia-cudnn-frontend).
if(zeropp_cuda_found AND NOT TARGET zeropp::cudnn_library)
  find_path(ZEROPP_CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS} DOC "Folder of cudnn.h")
  find_library(ZEROPP_CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${CUDAToolkit_LIBRARY_DIR} DOC "libcudnn.so")
  file(GLOB zeropp_python_includes "$ENV{VIRTUAL_ENV}/lib/python3*/site-packages/include")
  find_path(ZEROPP_CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${CUDAToolkit_INCLUDE_DIRS}
            PATHS ${zeropp_python_includes} DOC "Folder of cudnn_frontend.h")
  unset(zeropp_python_includes)
  mark_as_advanced(ZEROPP_CUDNN_INCLUDE_DIR ZEROPP_CUDNN_LIBRARY ZEROPP_CUDNN_FRONTEND_INCLUDE_DIR)
  if(ZEROPP_CUDNN_INCLUDE_DIR AND ZEROPP_CUDNN_LIBRARY AND ZEROPP_CUDNN_FRONTEND_INCLUDE_DIR AND TARGET CUDA::nvrtc)
    add_library(zeropp::cudnn_library UNKNOWN IMPORTED)
    set_target_properties(zeropp::cudnn_library PROPERTIES IMPORTED_LOCATION "${ZEROPP_CUDNN_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${ZEROPP_CUDNN_INCLUDE_DIR};${ZEROPP_CUDNN_FRONTEND_INCLUDE_DIR}"
      INTERFACE_LINK_LIBRARIES CUDA::nvrtc)  # for engines of the frontend that we don't use
  endif()
endif()
