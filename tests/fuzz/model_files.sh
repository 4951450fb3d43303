#!/bin/sh
# Damaged and hostile files of tokenizers and chat templates under the address and undefined-behaviour sanitizers, see
# model_files.cpp:   sh tests/fuzz/model_files.sh [MUTATIONS OF EACH KIND] [SEED]
# Without a seed a new one each time, which is printed. Files that fail stay in out/fuzz/model_files.
set -eu
cd "$(dirname "$0")/../.."
. cmake/packages.sh
need_packages g++ pkg-config nlohmann-json3-dev libxxhash-dev libssl-dev libsentencepiece-dev libpcre2-dev \
  libutf8proc-dev
folder=out/fuzz/model_files
mkdir -p $folder
flags=$(pkg-config --cflags --libs libpcre2-8 libutf8proc libxxhash libcrypto sentencepiece)
# shellcheck disable=SC2086
"${CXX:-g++}" -std=c++20 -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
  -Iinclude -Iconfigs -Itests -DQLORA_WITH_PCRE2 -DQLORA_WITH_UTF8PROC "-DQLORA_SOURCE_DIR=\"$PWD\"" \
  tests/fuzz/model_files.cpp -o out/fuzz/model_files_test $flags -lpthread
seed=${2:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
echo "seed $seed"
ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 out/fuzz/model_files_test "${1:-1500}" "$seed" $folder
