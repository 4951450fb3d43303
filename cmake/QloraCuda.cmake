# The CUDA side. QLORA_CUDA is AUTO (used where a CUDA 12 toolkit with cuBLASLt is found), ON (an error without) or OFF;
# it leaves QLORA_HAS_CUDA, QLORA_HAS_CUDNN, QLORA_HAS_NCCL and the target
#   qlora::cuda  the kernels and their launchers, a static library, and the definition QLORA_CUDA for what links it
# Only the generated .cu files and the launchers of qlora/cuda/*/*.hpp see CUDA's headers: everything that reaches
# kernels through qlora/cuda/launch.hpp is plain C++ and compiled by the C++ compiler.

set(qlora_cuda_default OFF) # a build that includes this one must ask for a second compiler
if(PROJECT_IS_TOP_LEVEL)
  set(qlora_cuda_default AUTO)
endif()
set(QLORA_CUDA ${qlora_cuda_default} CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set_property(CACHE QLORA_CUDA PROPERTY STRINGS AUTO ON OFF)
set(QLORA_HAS_CUDA OFF)
set(QLORA_HAS_CUDNN OFF)
set(QLORA_HAS_NCCL OFF)

if(NOT QLORA_CUDA)
  message(STATUS "qlora: CUDA is off: no GPU backend")
  return()
endif()

# Ampere, Hopper with its own instructions (wgmma exists in 90a only), and PTX for what comes after.
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual" CACHE STRING "GPU architectures to compile for" FORCE)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(QLORA_NVCC nvcc HINTS /usr/local/cuda/bin) # where NVIDIA's packages put it, which PATH often lacks
  mark_as_advanced(QLORA_NVCC)
  if(QLORA_NVCC)
    set(ENV{CUDACXX} "${QLORA_NVCC}")
    unset(CMAKE_CUDA_COMPILER CACHE) # an earlier "not found"
  endif()
endif()
set(qlora_cuda_missing)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  set(qlora_cuda_missing "no working nvcc")
else()
  find_package(CUDAToolkit 12.0 QUIET) # the first nvcc with C++20
  if(NOT TARGET CUDA::cudart_static OR NOT TARGET CUDA::cublasLt)
    set(qlora_cuda_missing "no CUDA 12 toolkit with the static runtime and cuBLASLt")
  endif()
endif()
if(qlora_cuda_missing)
  if(NOT QLORA_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "QLORA_CUDA is ON, but there is ${qlora_cuda_missing}; install the CUDA toolkit, set "
                        "CMAKE_CUDA_COMPILER to its nvcc, or set QLORA_CUDA to AUTO")
  endif()
  message(STATUS "qlora: without CUDA (${qlora_cuda_missing}): no GPU backend")
  return()
endif()
enable_language(CUDA)
set(QLORA_HAS_CUDA ON)
# CMake 3.25 does not know that nvcc has C++20.
foreach(kind IN ITEMS STANDARD EXTENSION)
  if(NOT CMAKE_CUDA20_${kind}_COMPILE_OPTION)
    set(CMAKE_CUDA20_${kind}_COMPILE_OPTION "-std=c++20")
  endif()
endforeach()

# cuDNN's fused attention: its library, and NVIDIA's header-only front end to it, which is shipped apart from it and has
# no fixed place; QLORA_CUDNN_FRONTEND, a variable of CMake or of the environment, names the folder of cudnn_frontend.h.
qlora_optional(CUDNN)
if(QLORA_WITH_CUDNN)
  find_package(CUDNN QUIET)
  if(CUDNN_FOUND)
    set(QLORA_HAS_CUDNN ON)
  elseif(QLORA_WITH_CUDNN STREQUAL "AUTO")
    message(STATUS "qlora: without cuDNN or cudnn_frontend.h (QLORA_CUDNN_FRONTEND may name its folder): attention "
                   "runs on this library's own kernels")
  else()
    message(FATAL_ERROR "QLORA_WITH_CUDNN is ON, but cuDNN or cudnn_frontend.h was not found; QLORA_CUDNN_FRONTEND may "
                        "name the folder of the second")
  endif()
endif()

qlora_optional(NCCL)
if(QLORA_WITH_NCCL)
  find_package(NCCL QUIET)
  set(QLORA_HAS_NCCL ${NCCL_FOUND})
endif()
qlora_optional_done(NCCL "none; NCCL_ROOT may name its folder" "training on one GPU")

# qlora_cuda_toolkit(TARGET [CUDNN]): what compiling a file with CUDA's headers takes; CUDNN adds cuDNN and NCCL where
# they are there.
function(qlora_cuda_toolkit target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/cuda")
  target_link_libraries(${target} PRIVATE qlora CUDA::cudart_static CUDA::cublasLt)
  if("CUDNN" IN_LIST ARGN AND QLORA_HAS_CUDNN)
    target_compile_definitions(${target} PRIVATE QLORA_WITH_CUDNN)
    target_link_libraries(${target} PRIVATE CUDNN::cudnn CUDA::nvrtc ${CMAKE_DL_LIBS})
    # Not linked: who uses the compiled library needs no front end.
    target_include_directories(${target} SYSTEM
                               PRIVATE $<TARGET_PROPERTY:CUDNN::frontend,INTERFACE_INCLUDE_DIRECTORIES>)
  endif()
  if("CUDNN" IN_LIST ARGN AND QLORA_HAS_NCCL)
    target_compile_definitions(${target} PRIVATE QLORA_WITH_NCCL)
    target_link_libraries(${target} PRIVATE NCCL::nccl)
  endif()
endfunction()

# One translation unit for each header that defines launchers, so that they compile side by side; nvcc compiles the
# .cuh, the C++ compiler the .hpp.
file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/cuda"
     "${PROJECT_SOURCE_DIR}/cuda/qlora/cuda/*.cuh" "${PROJECT_SOURCE_DIR}/cuda/qlora/cuda/*.hpp")
set(sources)
set(QLORA_CUDA_LAUNCHER_HEADERS) # read by the check that headers compile alone
foreach(header IN LISTS headers)
  set(path "${PROJECT_SOURCE_DIR}/cuda/${header}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${path}") # it may get its first launcher
  file(STRINGS "${path}" launchers REGEX "^[^#/]*QLORA_CUDA_LAUNCHER( |$)" LIMIT_COUNT 1)
  if(NOT launchers)
    continue()
  endif()
  cmake_path(RELATIVE_PATH header BASE_DIRECTORY qlora/cuda OUTPUT_VARIABLE name)
  cmake_path(REMOVE_EXTENSION name)
  set(extension cu)
  if(header MATCHES "[.]hpp$")
    set(extension cpp)
  endif()
  set(source "${PROJECT_BINARY_DIR}/cuda/${name}.${extension}")
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT "#define QLORA_CUDA_LAUNCHER\n#include \"${header}\"\n")
  list(APPEND sources "${source}")
  list(APPEND QLORA_CUDA_LAUNCHER_HEADERS "${header}")
endforeach()
if(NOT sources) # a library has at least one source
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/cuda/launch.cpp" CONTENT "#include \"qlora/cuda/launch.hpp\"\n" @ONLY)
  set(sources "${PROJECT_BINARY_DIR}/cuda/launch.cpp")
endif()

set(exclude EXCLUDE_FROM_ALL)
if(PROJECT_IS_TOP_LEVEL OR QLORA_INSTALL)
  set(exclude)
endif()
add_library(qlora_cuda STATIC ${exclude} ${sources})
add_library(qlora::cuda ALIAS qlora_cuda)
set_target_properties(qlora_cuda PROPERTIES EXPORT_NAME cuda POSITION_INDEPENDENT_CODE ON)
target_link_libraries(qlora_cuda PUBLIC qlora)
target_include_directories(qlora_cuda PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cuda>")
target_compile_definitions(qlora_cuda PUBLIC QLORA_CUDA)
qlora_cuda_toolkit(qlora_cuda CUDNN)
qlora_warnings(qlora_cuda)
list(APPEND qlora_components qlora_cuda)
