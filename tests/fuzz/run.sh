#!/bin/sh
# Bodies of the server's paths under libFuzzer, with address and undefined-behaviour sanitizers:
#   sh tests/fuzz/run.sh [SECONDS]
# For 60 seconds by default. Ends with an error, and a file crash-..., at the first body that is neither taken within
# all limits nor refused with a message. Inputs that were found stay in out/fuzz and are where the next run begins.
# Needs clang 15 or newer with libFuzzer (Debian 12: clang-16 and libclang-rt-16-dev).
#   CLANG  the compiler (clang++-16)
set -eu
cd "$(dirname "$0")/../.."
. cmake/packages.sh
[ -n "${CLANG:-}" ] || need_packages clang-16 libclang-rt-16-dev
found=out/fuzz/serve_bodies
mkdir -p "$found"
flags=$(pkg-config --cflags --libs libpcre2-8 libutf8proc libxxhash libcrypto sentencepiece)
# shellcheck disable=SC2086
"${CLANG:-clang++-16}" -std=c++20 -O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined \
  -fno-sanitize-recover=all -Iinclude -Iconfigs -Itests -DQLORA_WITH_PCRE2 -DQLORA_WITH_UTF8PROC \
  "-DQLORA_SOURCE_DIR=\"$PWD\"" \
  tests/fuzz/serve_bodies.cpp -o out/fuzz/serve_bodies_fuzzer $flags -lpthread
out/fuzz/serve_bodies_fuzzer -max_total_time="${1:-60}" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
  -dict=tests/fuzz/serve_bodies.dict -artifact_prefix=out/fuzz/ "$found"
