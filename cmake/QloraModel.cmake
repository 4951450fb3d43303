# qlora_add_model(NAME CONFIG HEADER file BACKENDS cpu cuda ALSO config...): compiles the Model, Trainer, Generator
# and Scorer of one config once.
#
#   CONFIG    a constant expression of type qlora::Config, for example my::config
#   HEADER    the header that defines it, relative to the current source folder or on the include path; it is included
#             after the library's door, so it may use everything that the door offers
#   ALSO      more configs for the same translation units, such as a chat form. Code that they share with CONFIG is
#             compiled once; that is all but thin wrappers if only run-time numbers and the prompt form differ
#   BACKENDS  cpu (the default) or cuda or both; one translation unit each, compiled by the C++ compiler. cuda needs the
#             component qlora::cuda
#
# Makes the static library NAME. Linking it gives a plain .cpp the header <NAME.hpp>: the door, HEADER, and extern
# template declarations, so that using the classes does not compile them again.
function(qlora_add_model name config)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "HEADER" "BACKENDS;ALSO")
  if(NOT arg_BACKENDS)
    set(arg_BACKENDS cpu)
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "qlora_add_model(${name}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${name}")
  set(include_header)
  if(arg_HEADER)
    set(include_header "#include \"${arg_HEADER}\"\n")
  endif()
  set(backend_cpu "qlora::Cpu<float>")
  set(backend_cuda "qlora::Cuda")
  if("cuda" IN_LIST arg_BACKENDS)
    if(NOT TARGET qlora::cuda)
      message(FATAL_ERROR "qlora_add_model(${name}): BACKENDS cuda needs qlora::cuda; "
                          "configure qlora with QLORA_CUDA=ON, "
                          "or ask find_package for the component cuda")
    endif()
    string(PREPEND include_header "#include <qlora/cuda.hpp>\n")
  endif()
  set(sources)
  set(declarations)
  foreach(backend IN LISTS arg_BACKENDS)
    if(NOT DEFINED backend_${backend})
      message(FATAL_ERROR "qlora_add_model(${name}): no backend named ${backend}; there are: cpu cuda")
    endif()
    set(definitions)
    foreach(compiled_config IN ITEMS "${config}" LISTS arg_ALSO)
      foreach(class IN ITEMS Model Trainer Generator Scorer)
        string(APPEND declarations
               "extern template class qlora::${class}<(${compiled_config}), ${backend_${backend}}>;\n")
        string(APPEND definitions "template class qlora::${class}<(${compiled_config}), ${backend_${backend}}>;\n")
      endforeach()
    endforeach()
    file(CONFIGURE OUTPUT "${folder}/${name}_${backend}.cpp" @ONLY
         CONTENT "#include <qlora/llama2.hpp>\n${include_header}\n${definitions}")
    list(APPEND sources "${folder}/${name}_${backend}.cpp")
  endforeach()
  file(CONFIGURE OUTPUT "${folder}/${name}.hpp" @ONLY
       CONTENT "#pragma once\n#include <qlora/llama2.hpp>\n${include_header}\n${declarations}")
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC qlora::cpu)
  if("cuda" IN_LIST arg_BACKENDS)
    target_link_libraries(${name} PUBLIC qlora::cuda)
  endif()
  target_include_directories(${name} PUBLIC "$<BUILD_INTERFACE:${folder}>"
                                            "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}>")
endfunction()
