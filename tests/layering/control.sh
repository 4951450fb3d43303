#!/bin/sh
# control.sh FOLDER: a tree in FOLDER with one bad include at a time; layering.sh must name each, and pass the clean tree.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$1
failed=0

plant() { # plant FILE INCLUDE: the clean tree and one more include
  rm -rf "$tree"
  mkdir -p "$tree/include/qlora/cpu" "$tree/include/qlora/model" "$tree/include/qlora/train" "$tree/include/qlora/io" \
    "$tree/include/qlora/web" "$tree/include/qlora/text" "$tree/configs/qlora/configs"
  echo '#include <vector>' >"$tree/include/qlora/error.hpp"
  echo '#include "qlora/error.hpp"' >"$tree/include/qlora/backend.hpp"
  printf '#include <Eigen/Core>\n#include "qlora/backend.hpp"\n' >"$tree/include/qlora/cpu/gemm.hpp"
  echo '#include "qlora/backend.hpp"' >"$tree/include/qlora/model/block.hpp"
  echo '#include "qlora/model/block.hpp"' >"$tree/include/qlora/train/trainer.hpp"
  printf '#include <nlohmann/json.hpp>\n#include <fcntl.h>\n' >"$tree/include/qlora/io/hf.hpp"
  echo '#include <curl/curl.h>' >"$tree/include/qlora/web/fetch.hpp"
  echo '#include <sentencepiece_processor.h>' >"$tree/include/qlora/text/tokenizer.hpp"
  echo '#include "qlora/error.hpp"' >"$tree/configs/qlora/configs/tiny.hpp"
  printf '#include "qlora/cpu/gemm.hpp"\n#include "qlora/train/trainer.hpp"\n' >"$tree/include/qlora/llama2.hpp"
  [ -z "$1" ] || echo "#include $2" >>"$tree/include/qlora/$1"
}
expect_offence() {
  plant "$1" "$2"
  if output=$(sh "$here/layering.sh" "$tree"); then
    echo "not caught: $1 with #include $2"
    failed=1
  elif ! printf '%s\n' "$output" | grep -q "^include/qlora/$1 includes "; then
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
expect_offence io/hf.hpp '"qlora/llama2.hpp"'
expect_offence text/tokenizer.hpp '<libxml/HTMLparser.h>'
expect_offence web/fetch.hpp '<sentencepiece_processor.h>'
expect_offence web/fetch.hpp '"../io/hf.hpp"'
expect_offence web/fetch.hpp '<CLI/CLI.hpp>'
rm -rf "$tree"
exit $failed
