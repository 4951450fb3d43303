# qlora_register(TARGET CONFIG HEADER file BACKENDS cpu cuda): compiles the code of a config into a program that uses
# qlora/run/, and puts it on the program's registry. A static config is preferred for its own shape.
#
#   TARGET    an executable
#   CONFIG    a constant expression of type qlora::Config, for example my::config
#   HEADER    the header that defines it, relative to the current source folder or on the include path
#   BACKENDS  cpu (the default) or cuda or both; one translation unit each, compiled by the C++ compiler. cuda needs the
#             component qlora::cuda
function(qlora_register target config)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "HEADER" "BACKENDS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "qlora_register(${target}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_HEADER)
    message(FATAL_ERROR "qlora_register(${target}): HEADER must name the header that defines ${config}")
  endif()
  if(NOT arg_BACKENDS)
    set(arg_BACKENDS cpu)
  endif()
  set(type_cpu "qlora::Cpu<float>")
  set(type_cuda "qlora::Cuda")
  string(MAKE_C_IDENTIFIER "${config}" name)
  foreach(backend IN LISTS arg_BACKENDS)
    if(NOT DEFINED type_${backend})
      message(FATAL_ERROR "qlora_register(${target}): no backend named ${backend}; there are: cpu cuda")
    endif()
    if(backend STREQUAL "cuda" AND NOT TARGET qlora::cuda)
      message(FATAL_ERROR "qlora_register(${target}): BACKENDS cuda needs qlora::cuda; "
                          "configure qlora with QLORA_CUDA=ON, or ask find_package for the component cuda")
    endif()
    set(source "${CMAKE_CURRENT_BINARY_DIR}/${target}_code/${name}_${backend}.cpp")
    file(CONFIGURE OUTPUT "${source}" @ONLY
         CONTENT "#include <qlora/run/compiled.hpp>
#include \"${arg_HEADER}\"

static const qlora::run::RegisteredCode<(${config}), ${type_${backend}}> registered;
")
    target_sources(${target} PRIVATE "${source}")
  endforeach()
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  if(TARGET qlora::cpu_float) # in this project's own build
    target_link_libraries(${target} PRIVATE qlora::cpu_float)
  endif()
  target_link_libraries(${target} PRIVATE qlora::cpu qlora::io qlora::text)
  if("cuda" IN_LIST arg_BACKENDS)
    target_link_libraries(${target} PRIVATE qlora::cuda)
  endif()
  # for the error message of a program that lacks code
  get_target_property(lists ${target} SOURCE_DIR)
  target_compile_definitions(
    ${target} PRIVATE "QLORA_BUILD_DIR=\"${CMAKE_BINARY_DIR}\"" "QLORA_BUILD_TARGET=\"${target}\""
                      "QLORA_BUILD_LISTS=\"${lists}/CMakeLists.txt\"")
endfunction()
