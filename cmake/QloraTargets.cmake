# The library's targets. Those for users are INTERFACE targets: include folders, definitions and link libraries.
#   qlora::qlora  vocabulary and configs, std only         qlora::io    + nlohmann/json, xxHash, OpenSSL: model files
#   qlora::cpu    + Eigen and threads (models, training)   qlora::text  + sentencepiece, PCRE2, utf8proc
#   qlora::net    + libcurl                                qlora::web   io, net + libgumbo
#   qlora::s3     io, net + libxml2
#   qlora::serve  cpu, text + Boost                        qlora::mpi   io + MPI: ranks on the CPU
#   qlora::cuda   compiled kernels: QloraCuda.cmake

add_library(qlora INTERFACE)
add_library(qlora::qlora ALIAS qlora)
target_compile_features(qlora INTERFACE cxx_std_20)
target_include_directories(qlora INTERFACE "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>"
                                           "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/configs>"
                                           "$<INSTALL_INTERFACE:include>")
set(qlora_components qlora)

# qlora_component(NAME dependency...): qlora::NAME = qlora::qlora + the dependencies.
macro(qlora_component name)
  add_library(qlora_${name} INTERFACE)
  add_library(qlora::${name} ALIAS qlora_${name})
  set_target_properties(qlora_${name} PROPERTIES EXPORT_NAME ${name})
  target_link_libraries(qlora_${name} INTERFACE qlora ${ARGN})
  list(APPEND qlora_components qlora_${name})
endmacro()

qlora_component(cpu Eigen3::Eigen Threads::Threads)
# As in qlora/cpu/numbers.hpp, for programs that include Eigen before the library: no threading inside Eigen (it changes
# bits and allocates in each product), and room on the stack, so that a training step allocates nothing.
target_compile_definitions(qlora_cpu INTERFACE EIGEN_DONT_PARALLELIZE EIGEN_STACK_ALLOCATION_LIMIT=2097152)

# The float operators compiled once, for this build's own programs and tests: a trainer then compiles in half the time.
add_library(qlora_cpu_float STATIC EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/cmake/cpu_float.cpp")
add_library(qlora::cpu_float ALIAS qlora_cpu_float)
target_link_libraries(qlora_cpu_float PUBLIC qlora_cpu)
target_compile_definitions(qlora_cpu_float INTERFACE QLORA_PREBUILT_CPU)
# All the time of a training step is spent here, so this file is optimised even where the rest is compiled to be quick.
target_compile_options(qlora_cpu_float PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O3>)
# The sanitizers' subset is compiled at -O0, where the checks cost half the seconds to compile (pack.hpp: 13.6 s, at -O1
# 23.6 s; g++ 12). What trains, and calls Eigen, would then run many times longer: it keeps -O1.
set(qlora_sanitized_trainer)
if(QLORA_TEST_SUBSET STREQUAL "sanitize")
  set(qlora_sanitized_trainer -O1)
endif()
target_compile_options(qlora_cpu_float PRIVATE ${qlora_sanitized_trainer})

qlora_component(io nlohmann_json::nlohmann_json XXHASH::XXHASH OpenSSL::Crypto)
if(QLORA_HAS_SENTENCEPIECE)
  qlora_component(text qlora_io PkgConfig::QLORA_SENTENCEPIECE)
  if(QLORA_HAS_PCRE2)
    target_link_libraries(qlora_text INTERFACE PkgConfig::QLORA_PCRE2)
    target_compile_definitions(qlora_text INTERFACE QLORA_WITH_PCRE2)
  endif()
  if(QLORA_HAS_UTF8PROC)
    target_link_libraries(qlora_text INTERFACE PkgConfig::QLORA_UTF8PROC)
    target_compile_definitions(qlora_text INTERFACE QLORA_WITH_UTF8PROC)
  endif()
endif()
if(QLORA_HAS_BOOST AND QLORA_HAS_SENTENCEPIECE)
  qlora_component(serve qlora_cpu qlora_text Boost::headers Threads::Threads)
endif()
if(QLORA_HAS_MPI)
  qlora_component(mpi qlora_io MPI::MPI_CXX Threads::Threads)
  target_compile_definitions(qlora_mpi INTERFACE QLORA_WITH_MPI)
endif()
if(QLORA_HAS_CURL)
  qlora_component(net CURL::libcurl Threads::Threads)
  if(QLORA_HAS_XML2)
    qlora_component(s3 qlora_io qlora_net LibXml2::LibXml2)
  endif()
  if(QLORA_HAS_GUMBO)
    qlora_component(web qlora_io qlora_net PkgConfig::QLORA_GUMBO)
  endif()
endif()

# Warnings for the project's own sources; never part of what a user links. For nvcc: its own, and the C++ compiler's.
function(qlora_warnings target)
  target_compile_options(
    ${target}
    PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wconversion;-Wshadow>"
            "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow>"
            "$<$<AND:$<BOOL:${QLORA_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>"
            "$<$<AND:$<BOOL:${QLORA_WERROR}>,$<COMPILE_LANGUAGE:CUDA>>:-Werror=all-warnings;-Xcompiler=-Werror>")
endfunction()
