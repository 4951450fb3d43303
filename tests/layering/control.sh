#!/bin/sh
# control.sh FOLDER: a tree in FOLDER with one bad include at a time; layering.sh must name each, and pass the clean
# tree.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$1
failed=0

plant() { # plant FILE INCLUDE: the clean tree and one more include; FILE lies in include/qlora, or names its root
  rm -rf "$tree"
  mkdir -p "$tree/include/qlora/cpu" "$tree/include/qlora/model" "$tree/include/qlora/train" "$tree/include/qlora/io" \
    "$tree/include/qlora/run" "$tree/include/qlora/net" "$tree/include/qlora/web" "$tree/include/qlora/text" \
    "$tree/configs/qlora/configs" "$tree/cuda/qlora/cuda/rowwise" "$tree/cuda/qlora/cuda/attention"
  echo '#include <vector>' >"$tree/include/qlora/error.hpp"
  echo '#include "qlora/error.hpp"' >"$tree/include/qlora/backend.hpp"
  printf '#include <Eigen/Core>\n#include "qlora/backend.hpp"\n' >"$tree/include/qlora/cpu/gemm.hpp"
  echo '#include "qlora/backend.hpp"' >"$tree/include/qlora/model/block.hpp"
  echo '#include "qlora/model/block.hpp"' >"$tree/include/qlora/train/trainer.hpp"
  printf '#include <nlohmann/json.hpp>\n#include <fcntl.h>\n' >"$tree/include/qlora/io/hf.hpp"
  echo '#include <curl/curl.h>' >"$tree/include/qlora/net/http.hpp"
  printf '#include <gumbo.h>\n#include "qlora/net/http.hpp"\n' >"$tree/include/qlora/web/fetch.hpp"
  echo '#include <sentencepiece_processor.h>' >"$tree/include/qlora/text/sentencepiece.hpp"
  echo '#include "qlora/text/tokenizer.hpp"' >"$tree/include/qlora/run/options.hpp"
  echo '#include "qlora/error.hpp"' >"$tree/configs/qlora/configs/tiny.hpp"
  printf '#include "qlora/cpu/gemm.hpp"\n#include "qlora/train/trainer.hpp"\n' >"$tree/include/qlora/llama2.hpp"
  printf '#include <vector>\n#include "qlora/error.hpp"\n' >"$tree/cuda/qlora/cuda/launch.hpp"
  printf '#include <cuda_bf16.h>\n#include "qlora/cuda/launch.hpp"\nQLORA_CUDA_LAUNCHER void f() {}\n' \
    >"$tree/cuda/qlora/cuda/rowwise/norm.cuh"
  printf '#include <cudnn.h>\n#include "qlora/cuda/rowwise/norm.cuh"\n' >"$tree/cuda/qlora/cuda/attention/cudnn.hpp"
  printf '#include "qlora/backend.hpp"\n#include "qlora/cuda/launch.hpp"\n' >"$tree/cuda/qlora/cuda.hpp"
  printf '#include "qlora/cuda/rowwise/norm.cuh"\n#include "qlora/cuda/rowwise/swiglu.cuh"\n' \
    >"$tree/cuda/qlora/cuda.cuh"
  echo 'QLORA_CUDA_LAUNCHER void h() {}' >"$tree/cuda/qlora/cuda/rowwise/swiglu.cuh"
  [ -z "$1" ] || echo "#include $2" >>"$tree/$(place "$1")"
}
place() {
  case $1 in
    cuda/qlora/*) echo "$1" ;;
    *) echo "include/qlora/$1" ;;
  esac
}
expect_offence() {
  plant "$1" "$2"
  if output=$(sh "$here/layering.sh" "$tree"); then
    echo "not caught: $1 with #include $2"
    failed=1
  elif ! printf '%s\n' "$output" | grep -q "^$(place "$1") includes "; then
    echo "caught for the wrong reason: $1 with #include $2: $output"
    failed=1
  fi
}

plant '' ''
sh "$here/layering.sh" "$tree"
expect_offence error.hpp '"qlora/backend.hpp"'
expect_offence error.hpp '<Eigen/Core>'
expect_offence error.hpp '<sys/mman.h>'
expect_offence cpu/gemm.hpp '"qlora/model/block.hpp"'
expect_offence cpu/gemm.hpp '<nlohmann/json.hpp>'
expect_offence model/block.hpp '"qlora/cpu/gemm.hpp"'
expect_offence model/block.hpp '<Eigen/Core>'
expect_offence train/trainer.hpp '"qlora/cpu.hpp"'
expect_offence train/trainer.hpp '"qlora/io/hf.hpp"'
expect_offence io/hf.hpp '<curl/curl.h>'
expect_offence io/hf.hpp '<Eigen/Core>'
expect_offence io/hf.hpp '<xxhash.h>'
expect_offence io/hf.hpp '<openssl/evp.h>'
expect_offence io/hf.hpp '"qlora/llama2.hpp"'
expect_offence io/hf.hpp '<immintrin.h>'
expect_offence io/hf.hpp '"qlora/run/options.hpp"'
expect_offence run/options.hpp '<nlohmann/json.hpp>'
expect_offence run/options.hpp '<toml++/toml.h>'
expect_offence run/options.hpp '<CLI/CLI.hpp>'
expect_offence text/tokenizer.hpp '<gumbo.h>'
expect_offence net/http.hpp '<gumbo.h>'
expect_offence net/http.hpp '<libxml/parser.h>'
expect_offence web/fetch.hpp '<curl/curl.h>'
expect_offence model/block.hpp '"qlora/net/http.hpp"'
expect_offence web/fetch.hpp '<sentencepiece_processor.h>'
expect_offence web/fetch.hpp '"../io/hf.hpp"'
expect_offence web/fetch.hpp '<CLI/CLI.hpp>'
expect_offence run/options.hpp '<boost/beast.hpp>'
expect_offence run/options.hpp '<mpi.h>'
expect_offence train/trainer.hpp '"qlora/io/hf.hpp"'
expect_offence model/block.hpp '"qlora/cuda.hpp"'
expect_offence train/trainer.hpp '"qlora/cuda/launch.hpp"'
expect_offence error.hpp '<cuda_runtime.h>'
expect_offence cpu/gemm.hpp '"qlora/cuda/launch.hpp"'
expect_offence cpu/gemm.hpp '<cuda_bf16.h>'
expect_offence cuda/qlora/cuda.hpp '<cuda_runtime.h>'
expect_offence cuda/qlora/cuda.hpp '"qlora/cuda/rowwise/norm.cuh"'
expect_offence cuda/qlora/cuda.hpp '"qlora/cpu/gemm.hpp"'
expect_offence cuda/qlora/cuda/launch.hpp '<cublasLt.h>'
expect_offence cuda/qlora/cuda/launch.hpp '"qlora/cuda/attention/cudnn.hpp"'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '<nccl.h>'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '<Eigen/Core>'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '<nlohmann/json.hpp>'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '"qlora/cpu/gemm.hpp"'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '"qlora/model/block.hpp"'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '<sys/mman.h>'
expect_offence cuda/qlora/cuda/rowwise/norm.cuh '"qlora/cuda/rowwise/swiglu.cuh"'
plant '' ''
echo 'QLORA_CUDA_LAUNCHER void g() {}' >"$tree/cuda/qlora/cuda/rowwise/rope.cuh"
if sh "$here/layering.sh" "$tree" >/dev/null; then
  echo "not caught: launchers that cuda.cuh does not include"
  failed=1
fi
rm -rf "$tree"
exit $failed
