# FindXXHASH: xxHash, which has no CMake package of its own.
#   XXHASH_FOUND, XXHASH_VERSION
#   XXHASH::XXHASH            the library and its header
# Hint: XXHASH_ROOT, also read from the environment: the folder that holds xxhash.h, or include/ and lib/.
include(FindPackageHandleStandardArgs)

find_path(XXHASH_INCLUDE_DIR xxhash.h HINTS ${XXHASH_ROOT} $ENV{XXHASH_ROOT} PATH_SUFFIXES include)
find_library(XXHASH_LIBRARY NAMES xxhash libxxhash.so.0 HINTS ${XXHASH_ROOT} $ENV{XXHASH_ROOT} PATH_SUFFIXES lib64 lib)
set(XXHASH_VERSION)
if(XXHASH_INCLUDE_DIR)
  file(STRINGS "${XXHASH_INCLUDE_DIR}/xxhash.h" _xxhash_lines
       REGEX "^# *define XXH_VERSION_(MAJOR|MINOR|RELEASE) +[0-9]+")
  foreach(_xxhash_part IN ITEMS MAJOR MINOR RELEASE)
    if("${_xxhash_lines}" MATCHES "XXH_VERSION_${_xxhash_part} +([0-9]+)")
      list(APPEND XXHASH_VERSION ${CMAKE_MATCH_1})
    endif()
  endforeach()
  list(JOIN XXHASH_VERSION "." XXHASH_VERSION)
endif()
find_package_handle_standard_args(XXHASH REQUIRED_VARS XXHASH_LIBRARY XXHASH_INCLUDE_DIR VERSION_VAR XXHASH_VERSION)
mark_as_advanced(XXHASH_INCLUDE_DIR XXHASH_LIBRARY)

if(XXHASH_FOUND AND NOT TARGET XXHASH::XXHASH)
  add_library(XXHASH::XXHASH UNKNOWN IMPORTED)
  set_target_properties(XXHASH::XXHASH PROPERTIES IMPORTED_LOCATION "${XXHASH_LIBRARY}"
                                                  INTERFACE_INCLUDE_DIRECTORIES "${XXHASH_INCLUDE_DIR}")
endif()
