# FindCUDNN: cuDNN of the CUDA toolkit or the system, and the header-only C++ graph API of cudnn-frontend.
#   CUDNN_FOUND               both are there, and new enough
#   CUDNN::cudnn              the library and its headers
#   CUDNN::frontend           cudnn_frontend.h (a system header) and CUDNN::cudnn
#   CUDNN_VERSION, CUDNN_FRONTEND_VERSION
# Hints: CUDNN_ROOT for the library, QLORA_CUDNN_FRONTEND for the folder that holds cudnn_frontend.h; both are also read
# from the environment. A checkout of cudnn-frontend, or the include folder of its wheel, will do for the latter.
include(FindPackageHandleStandardArgs)

find_package(CUDAToolkit QUIET)
find_path(CUDNN_INCLUDE_DIR cudnn.h
  HINTS ${CUDNN_ROOT} $ENV{CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS}
  PATH_SUFFIXES include)
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9
  HINTS ${CUDNN_ROOT} $ENV{CUDNN_ROOT} ${CUDAToolkit_LIBRARY_DIR}
  PATH_SUFFIXES lib64 lib)
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
  HINTS ${QLORA_CUDNN_FRONTEND} $ENV{QLORA_CUDNN_FRONTEND} ${CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS}
  PATH_SUFFIXES include)

# _cudnn_read_version(FILE PREFIX OUT): "#define <PREFIX>MAJOR<...> 9" and so on -> "9.14.0".
function(_cudnn_read_version file pattern out)
  set(version "")
  if(EXISTS "${file}")
    file(READ "${file}" text)
    foreach(part MAJOR MINOR PATCH)
      string(REPLACE "@PART@" "${part}" define "${pattern}")
      if(text MATCHES "#define ${define} +([0-9]+)")
        list(APPEND version ${CMAKE_MATCH_1})
      endif()
    endforeach()
    list(JOIN version "." version)
  endif()
  set(${out} "${version}" PARENT_SCOPE)
endfunction()
_cudnn_read_version("${CUDNN_INCLUDE_DIR}/cudnn_version.h" "CUDNN_@PART@L?E?V?E?L?" CUDNN_VERSION)
_cudnn_read_version("${CUDNN_FRONTEND_INCLUDE_DIR}/cudnn_frontend_version.h" "CUDNN_FRONTEND_@PART@_VERSION"
  CUDNN_FRONTEND_VERSION)

# Statistics with strides came with cuDNN 9.12.
set(_cudnn_recent OFF)
if(CUDNN_VERSION VERSION_GREATER_EQUAL 9.12 AND CUDNN_FRONTEND_VERSION AND CUDAToolkit_FOUND)
  set(_cudnn_recent ON)
endif()
find_package_handle_standard_args(CUDNN
  REQUIRED_VARS CUDNN_LIBRARY CUDNN_INCLUDE_DIR CUDNN_FRONTEND_INCLUDE_DIR _cudnn_recent
  VERSION_VAR CUDNN_VERSION)
mark_as_advanced(CUDNN_INCLUDE_DIR CUDNN_LIBRARY CUDNN_FRONTEND_INCLUDE_DIR)

if(CUDNN_FOUND AND NOT TARGET CUDNN::cudnn)
  add_library(CUDNN::cudnn UNKNOWN IMPORTED)
  set_target_properties(CUDNN::cudnn PROPERTIES
    IMPORTED_LOCATION "${CUDNN_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${CUDNN_INCLUDE_DIR}")
  add_library(CUDNN::frontend INTERFACE IMPORTED)
  set_target_properties(CUDNN::frontend PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${CUDNN_FRONTEND_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "CUDNN::cudnn;CUDA::nvrtc;${CMAKE_DL_LIBS}") # its other engines name NVRTC
endif()
