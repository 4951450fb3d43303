# One table at the end of a top-level configure: what was found and what will be built.
if(NOT TARGET qlora_program)
  set(QLORA_BUILD_PROGRAM OFF)
endif()
if(NOT QLORA_HAS_BENCHMARK)
  set(QLORA_BUILD_BENCH OFF)
endif()
set(rows
    "CMAKE_CXX_COMPILER_VERSION" "compiler (${CMAKE_CXX_COMPILER_ID})"
    "CMAKE_BUILD_TYPE" "build type"
    "QLORA_NATIVE" "for this machine's CPU only"
    "Eigen3_VERSION" "Eigen: models and training on the CPU"
    "nlohmann_json_VERSION" "nlohmann/json: model and adapter files"
    "XXHASH_VERSION" "xxHash: checksums of files"
    "OPENSSL_VERSION" "OpenSSL: SHA-256"
    "QLORA_HAS_CUDA" "CUDA: models and training on a GPU"
    "QLORA_HAS_SENTENCEPIECE" "sentencepiece: tokenizer"
    "QLORA_HAS_PCRE2" "PCRE2: byte-level tokenizers"
    "QLORA_HAS_UTF8PROC" "utf8proc: tokenizers with normal forms"
    "QLORA_HAS_CURL" "libcurl: fetching"
    "QLORA_HAS_GUMBO" "libgumbo: HTML to text"
    "QLORA_HAS_XML2" "libxml2: S3"
    "QLORA_HAS_BOOST" "Boost: HTTP server"
    "QLORA_HAS_MPI" "MPI: training by several processes on the CPU"
    "QLORA_HAS_TOML" "toml++: job files"
    "QLORA_HAS_CLI11" "CLI11: command line"
    "QLORA_HAS_EDIT" "libedit: editing the lines of a chat"
    "QLORA_HAS_BENCHMARK" "Google Benchmark"
    "QLORA_HAS_DOXYGEN" "Doxygen: the reference"
    "QLORA_BUILD_PROGRAM" "build the program"
    "QLORA_BUILD_EXAMPLES" "build the examples"
    "QLORA_BUILD_TESTS" "build the tests"
    "QLORA_BUILD_BENCH" "build the benchmarks")
if(QLORA_HAS_CUDA)
  list(APPEND rows "CMAKE_CUDA_ARCHITECTURES" "GPU architectures" "QLORA_HAS_CUDNN" "cuDNN: fused attention"
       "QLORA_HAS_NCCL" "NCCL: training on several GPUs")
endif()
message(STATUS "qlora ${PROJECT_VERSION}")
while(rows)
  list(POP_FRONT rows variable label)
  set(value "${${variable}}")
  if(value MATCHES "^(1|TRUE|ON)$")
    set(value yes)
  elseif(NOT value)
    set(value no)
  endif()
  string(LENGTH "${value}" width)
  math(EXPR pad "12 - ${width}")
  if(pad LESS 2)
    set(pad 2)
  endif()
  string(REPEAT " " ${pad} pad)
  message(STATUS "  ${value}${pad}${label}")
endwhile()
