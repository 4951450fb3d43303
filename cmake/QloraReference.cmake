# The target `reference`: the public headers as HTML in the build folder, where Doxygen is found.
find_package(Doxygen QUIET)
if(NOT DOXYGEN_FOUND)
  message(STATUS "qlora: without DOXYGEN (Debian: doxygen): no reference, and its test is skipped")
  return()
endif()
configure_file("${PROJECT_SOURCE_DIR}/docs/Doxyfile.in" "${PROJECT_BINARY_DIR}/Doxyfile" @ONLY)
add_custom_target(
  reference
  COMMAND "${DOXYGEN_EXECUTABLE}" "${PROJECT_BINARY_DIR}/Doxyfile"
  COMMENT "Writing the reference to ${PROJECT_BINARY_DIR}/reference/index.html"
  VERBATIM)
