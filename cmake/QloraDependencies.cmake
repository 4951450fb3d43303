# The library's dependencies, all from the distribution. Eigen, nlohmann/json, xxHash, OpenSSL and threads are
# required; each of the others is AUTO (used if found), ON (an error if missing) or OFF, and a missing one prints one
# line that says what is off. Every block leaves QLORA_HAS_<NAME>; QloraSummary prints them.

find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(Threads REQUIRED)
find_package(XXHASH 0.8 REQUIRED) # Debian: libxxhash-dev
find_package(OpenSSL 3.0 REQUIRED COMPONENTS Crypto) # Debian: libssl-dev
find_package(PkgConfig QUIET)

# qlora_optional(NAME "what is off without it" DEBIAN_PACKAGE): declares QLORA_WITH_NAME; the code after it sets
# QLORA_HAS_NAME, and qlora_optional_done reports.
macro(qlora_optional name)
  set(QLORA_WITH_${name} AUTO CACHE STRING "Use ${name}: AUTO, ON or OFF")
  set_property(CACHE QLORA_WITH_${name} PROPERTY STRINGS AUTO ON OFF)
  set(QLORA_HAS_${name} OFF)
endmacro()
function(qlora_optional_done name package loses)
  if(QLORA_HAS_${name})
    return()
  endif()
  if(QLORA_WITH_${name} STREQUAL "AUTO")
    message(STATUS "qlora: without ${name} (Debian: ${package}): ${loses}")
  elseif(QLORA_WITH_${name})
    message(FATAL_ERROR "QLORA_WITH_${name} is ON, but it was not found; install ${package} or set it to AUTO")
  endif()
endfunction()

qlora_optional(SENTENCEPIECE)
if(QLORA_WITH_SENTENCEPIECE AND PkgConfig_FOUND)
  pkg_check_modules(QLORA_SENTENCEPIECE QUIET IMPORTED_TARGET sentencepiece) # it has no CMake package
  if(QLORA_SENTENCEPIECE_FOUND)
    set(QLORA_HAS_SENTENCEPIECE ON)
  endif()
endif()
qlora_optional_done(SENTENCEPIECE libsentencepiece-dev "no tokenizer; token shards still load")

qlora_optional(PCRE2)
if(QLORA_WITH_PCRE2 AND PkgConfig_FOUND)
  pkg_check_modules(QLORA_PCRE2 QUIET IMPORTED_TARGET libpcre2-8>=10.40) # it has no CMake package
  if(QLORA_PCRE2_FOUND)
    set(QLORA_HAS_PCRE2 ON)
  endif()
endif()
qlora_optional_done(PCRE2 libpcre2-dev "no tokenizer.json whose words are split by a regular expression")

qlora_optional(UTF8PROC)
if(QLORA_WITH_UTF8PROC AND PkgConfig_FOUND)
  pkg_check_modules(QLORA_UTF8PROC QUIET IMPORTED_TARGET libutf8proc) # distributions differ in whether it has one
  if(QLORA_UTF8PROC_FOUND)
    set(QLORA_HAS_UTF8PROC ON)
  endif()
endif()
qlora_optional_done(UTF8PROC libutf8proc-dev "no tokenizer.json with normal forms of Unicode, such as Qwen2's")

qlora_optional(EDIT)
if(QLORA_WITH_EDIT AND PkgConfig_FOUND)
  pkg_check_modules(QLORA_EDIT QUIET IMPORTED_TARGET libedit) # it has no CMake package
  if(QLORA_EDIT_FOUND)
    set(QLORA_HAS_EDIT ON)
  endif()
endif()
qlora_optional_done(EDIT libedit-dev "lines of a chat cannot be edited")

qlora_optional(CURL)
if(QLORA_WITH_CURL)
  find_package(CURL 7.85 QUIET)
  set(QLORA_HAS_CURL ${CURL_FOUND})
endif()
qlora_optional_done(CURL libcurl4-openssl-dev "nothing is fetched over the network; the program has no fetch and run")

qlora_optional(GUMBO)
if(QLORA_WITH_GUMBO AND PkgConfig_FOUND)
  pkg_check_modules(QLORA_GUMBO QUIET IMPORTED_TARGET gumbo) # it has no CMake package
  if(QLORA_GUMBO_FOUND)
    set(QLORA_HAS_GUMBO ON)
  endif()
endif()
qlora_optional_done(GUMBO libgumbo-dev "no text is taken out of HTML pages; the program has no fetch and run")

qlora_optional(BOOST)
if(QLORA_WITH_BOOST)
  find_package(Boost 1.81 QUIET)
  set(QLORA_HAS_BOOST ${Boost_FOUND})
endif()
qlora_optional_done(BOOST libboost1.81-dev "no HTTP server; the program has no serve")

qlora_optional(MPI)
if(QLORA_WITH_MPI)
  set(MPI_CXX_SKIP_MPICXX ON) # the C++ names of MPI 2, a library of their own
  find_package(MPI 3.0 QUIET COMPONENTS CXX)
  set(QLORA_HAS_MPI ${MPI_CXX_FOUND})
endif()
qlora_optional_done(MPI libopenmpi-dev "no training on the CPU by several processes")

qlora_optional(TOML)
if(QLORA_WITH_TOML)
  find_package(tomlplusplus QUIET)
  set(QLORA_HAS_TOML ${tomlplusplus_FOUND})
endif()
qlora_optional_done(TOML libtomlplusplus-dev "no job files; the program has no run")

qlora_optional(CLI11)
if(QLORA_WITH_CLI11)
  find_package(CLI11 QUIET)
  set(QLORA_HAS_CLI11 ${CLI11_FOUND})
endif()
qlora_optional_done(CLI11 libcli11-dev "no program")

qlora_optional(XML2)
if(QLORA_WITH_XML2)
  find_package(LibXml2 QUIET)
  set(QLORA_HAS_XML2 ${LibXml2_FOUND})
endif()
qlora_optional_done(XML2 libxml2-dev "no paths in S3; the test that reads reports as XML is left out")

if(QLORA_BUILD_BENCH)
  qlora_optional(BENCHMARK)
  if(QLORA_WITH_BENCHMARK)
    find_package(benchmark QUIET)
    set(QLORA_HAS_BENCHMARK ${benchmark_FOUND})
  endif()
  qlora_optional_done(BENCHMARK libbenchmark-dev "no benchmarks")
endif()
