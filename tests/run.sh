#!/bin/sh
# The test command: sh tests/run.sh
# Installs what is missing (Debian 12, as root or with sudo), checks formatting, builds, runs every test that needs no
# GPU, then the sanitizers' subsets, and looks for warnings with clang. Prints CTest's summaries; exits non-zero on the
# first failure.
#
#   QLORA_LLAMA2_TOKENIZER   path of LLaMA-2's tokenizer.model; its tests are skipped without it
#   QLORA_GOLDEN             golden results to test against; default tests/golden
#   QLORA_JOBS               compilers and tests at a time; default: the number of processors
set -eu
cd "$(dirname "$0")/.."
jobs=${QLORA_JOBS:-$(nproc)}
started=$(date +%s)
say() { printf '\n== %s (%ss)\n' "$*" "$(($(date +%s) - started))"; }

. cmake/packages.sh
need_packages g++ cmake ninja-build pkg-config libeigen3-dev nlohmann-json3-dev libxxhash-dev libssl-dev doctest-dev \
  libsentencepiece-dev libpcre2-dev libutf8proc-dev libedit-dev libcli11-dev libtomlplusplus-dev \
  libcurl4-openssl-dev libgumbo-dev libboost1.81-dev libopenmpi-dev openmpi-bin libxml2-dev libbenchmark-dev \
  clang-format clang-16 libclang-rt-16-dev doxygen binutils python3 python3-venv openssl

# A store of S3 for its tests, where it can be had while the first build runs; without one they are skipped.
fetch_store() {
  "$1/bin/python" -c 'import moto.server' 2>/dev/null && return
  python3 -m venv "$1" && timeout 1200 nice "$1/bin/python" -m pip install --quiet 'moto[server]>=5.2.5' boto3
}
fetching=
if [ -z "${QLORA_S3_PYTHON:-}" ]; then
  fetch_store "$PWD/build-store" >build-store.log 2>&1 &
  fetching=$!
fi

export CMAKE_BUILD_PARALLEL_LEVEL="$jobs" CTEST_PARALLEL_LEVEL="$jobs"
# clang compiles what the sanitizers run: at -O0 it takes less time than g++ 12, and its checks find other faults.
sanitizing=
if printf 'int main() {}' | clang++-16 -x c++ -fsanitize=address,undefined - -o /dev/null 2>/dev/null; then
  sanitizing=clang++-16
fi
# A build folder remembers its generator and its compiler; a new one gets Ninja.
new_folder() {
  [ ! -f "build-$1/CMakeCache.txt" ] || return 0
  printf '%s' '-GNinja'
  [ "$1" = dev ] || [ -z "$sanitizing" ] || printf ' -DCMAKE_CXX_COMPILER=%s' "$sanitizing"
}

say "formatting"
if command -v clang-format >/dev/null; then
  find include configs cuda examples tests bench '(' -name '*.[ch]pp' -o -name '*.cuh' -o -name '*.cu' ')' \
    -exec clang-format --dry-run --Werror {} +
else
  echo "clang-format is not here; formatting was not checked"
fi

say "configure"
for preset in dev asan tsan; do
  # shellcheck disable=SC2046
  cmake --preset "$preset" $(new_folder "$preset") -DQLORA_TOGETHER=ON
done

# Each test once: those that the preset asan has run there, and dev builds and runs the others. ctest --preset dev runs
# them all.
say "dev: build"
cmake --build --preset dev --target unsanitized
if [ -n "$fetching" ]; then
  if wait "$fetching"; then
    export QLORA_S3_PYTHON="$PWD/build-store/bin/python"
  else
    tail -3 build-store.log
    echo "no store of S3 could be fetched; its tests are skipped"
  fi
fi
# Tests often wait for a server or for their last one, so compilers use what they leave. timeout ends all below it.
say "dev: test; beside it, at low priority, the sanitizers are built (build-sanitizers.log)"
timeout 7200 nice sh -ec 'for preset in asan tsan; do cmake --build --preset "$preset"; done' \
  >build-sanitizers.log 2>&1 &
building=$!
trap 'kill "$building" 2>/dev/null || :' EXIT
trap 'exit 1' HUP INT TERM
ctest --preset dev -LE '^sanitized$'
say "asan, tsan: the rest of the build"
wait "$building" || {
  cat build-sanitizers.log
  exit 1
}
trap - EXIT HUP INT TERM
for preset in asan tsan; do
  say "$preset: test"
  ctest --preset "$preset"
done
# The examples with the program, and the trainer of one model: all include the main header. Debian 12 has more than
# one clang; the one that has compiled the program for the sanitizers has shown its warnings.
say "warnings of clang"
trainers='/llama2_7b(_classes[^/]*)?\.cpp$'
for compiler in clang++-16 clang++-19; do
  files="/examples/((qlora|world)/)?[^/]*\.cpp$|$trainers"
  [ "$compiler" != "$sanitizing" ] || files="/examples/(world/)?(?!program_)[^/]*\.cpp$|$trainers"
  if command -v "$compiler" >/dev/null; then
    python3 tests/clang.py build-dev "$compiler" "$files"
  else
    echo "$compiler is not here; its warnings were not checked"
  fi
done
if [ -f build-dev/compile-seconds.txt ]; then
  say "processor seconds to compile the program and the trainers"
  awk '{ seconds[$2] = $1 } END { for (file in seconds) printf "%6.1f %s\n", seconds[file], file }' \
    build-dev/compile-seconds.txt | sort -rn
fi
say "all passed"
