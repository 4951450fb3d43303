# FindNCCL: NCCL of the system, the CUDA toolkit, or the Python package nvidia-nccl-cu13.
#   NCCL_FOUND     header and library are there, and new enough: 2.14 has calls that do not block
#   NCCL::nccl     the library and its header
#   NCCL_VERSION
# Hint: NCCL_ROOT, also read from the environment, a folder with include/ and lib/.
include(FindPackageHandleStandardArgs)

find_package(CUDAToolkit QUIET)
find_path(NCCL_INCLUDE_DIR nccl.h
  HINTS ${NCCL_ROOT} $ENV{NCCL_ROOT} ${CUDAToolkit_INCLUDE_DIRS}
  PATH_SUFFIXES include)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2
  HINTS ${NCCL_ROOT} $ENV{NCCL_ROOT} ${CUDAToolkit_LIBRARY_DIR}
  PATH_SUFFIXES lib64 lib)
set(NCCL_VERSION "")
if(NCCL_INCLUDE_DIR)
  file(STRINGS "${NCCL_INCLUDE_DIR}/nccl.h" lines REGEX "#define NCCL_(MAJOR|MINOR|PATCH) +[0-9]+")
  set(parts)
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".* ([0-9]+).*" "\\1" part "${line}")
    list(APPEND parts ${part})
  endforeach()
  list(JOIN parts "." NCCL_VERSION)
endif()
set(_nccl_recent OFF)
if(NCCL_VERSION VERSION_GREATER_EQUAL 2.14)
  set(_nccl_recent ON)
endif()
find_package_handle_standard_args(NCCL
  REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR _nccl_recent
  VERSION_VAR NCCL_VERSION)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)

if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  add_library(NCCL::nccl UNKNOWN IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES
    IMPORTED_LOCATION "${NCCL_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR}")
endif()
