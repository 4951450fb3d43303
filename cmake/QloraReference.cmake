# The target `reference`: the public headers as HTML in the build folder, where Doxygen is found.
set(QLORA_HAS_DOXYGEN OFF)
find_package(Doxygen QUIET)
if(NOT DOXYGEN_FOUND)
  message(STATUS "qlora: without DOXYGEN (Debian: doxygen): no reference, and its test is skipped")
  return()
endif()
set(QLORA_HAS_DOXYGEN ON)
configure_file("${PROJECT_SOURCE_DIR}/docs/Doxyfile.in" "${PROJECT_BINARY_DIR}/Doxyfile" @ONLY)
add_custom_target(
  reference
  COMMAND "${DOXYGEN_EXECUTABLE}" "${PROJECT_BINARY_DIR}/Doxyfile"
  COMMENT "Writing the reference to ${PROJECT_BINARY_DIR}/reference/index.html"
  VERBATIM)
