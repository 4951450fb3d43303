# The sanitizers' subset with clang: what most of its files include is parsed once, and the code of the inline functions
# and template instances in it is compiled once, into a shared library. Without it each file compiles nlohmann/json
# again under all checks. g++, the compiler of the other presets, can do the first only, and that saves it nothing.

# qlora_precompiled(TARGET HEADER...): makes the library TARGET of these headers of include/.
function(qlora_precompiled target)
  list(TRANSFORM ARGN PREPEND "${PROJECT_SOURCE_DIR}/include/" OUTPUT_VARIABLE files)
  qlora_needs_of(needs ${files})
  qlora_missing(missing ${needs})
  if(missing)
    return()
  endif()
  file(CONFIGURE OUTPUT "${target}.cpp" CONTENT "" @ONLY) # CMake precompiles for a source only
  add_library(${target}_pch OBJECT "${CMAKE_CURRENT_BINARY_DIR}/${target}.cpp")
  qlora_link_needs(${target}_pch ${needs})
  qlora_warnings(${target}_pch)
  list(TRANSFORM ARGN REPLACE "(.+)" "<\\1>")
  target_precompile_headers(${target}_pch PRIVATE ${ARGN})
  target_compile_options(${target}_pch PRIVATE -fPIC -fpch-instantiate-templates "SHELL:-Xclang -fmodules-codegen")

  set(pch "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/${target}_pch.dir/cmake_pch.hxx.pch")
  # Ninja knows the file by its relative path only, which OBJECT_DEPENDS gives; the source's absolute one waits for
  # nothing.
  set_source_files_properties("${pch}" PROPERTIES LANGUAGE CXX GENERATED ON OBJECT_DEPENDS "${pch}")
  add_library(${target} SHARED "${pch}")
  add_dependencies(${target} ${target}_pch)
  # Tests spend their time in this code, not in their own: it is optimised, once, and they stay at -O0.
  target_compile_options(${target} PRIVATE -O1 "SHELL:-x none" -Wno-unused-command-line-argument) # no C++ text
  # libstdc++ 12 declares a function of path's that it has not; nothing calls it.
  target_link_options(${target} INTERFACE -Wl,--allow-shlib-undefined)
  get_target_property(libraries ${target}_pch LINK_LIBRARIES)
  target_link_libraries(${target} PUBLIC ${libraries})
endfunction()

# qlora_use_precompiled(TARGET): an executable of the subset starts from these headers.
function(qlora_use_precompiled target)
  if(TARGET qlora_precompiled)
    target_precompile_headers(${target} REUSE_FROM qlora_precompiled_pch)
    target_link_libraries(${target} PRIVATE qlora_precompiled)
    target_compile_options(${target} PRIVATE -fPIC) # as the headers were
  endif()
endfunction()

if(QLORA_TEST_SUBSET STREQUAL "sanitize" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  qlora_precompiled(qlora_precompiled qlora/io/gguf_model.hpp qlora/io/hf_model.hpp qlora/io/peft.hpp
                    qlora/text/tokenizer.hpp qlora/text/dataset.hpp qlora/run/options.hpp)
endif()
