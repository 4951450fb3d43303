#!/bin/sh
# The tests that need a GPU: sh tests/gpu.sh
# Those that need several, of one host: sh tests/gpu.sh multi
# Configures the preset "gpu" into build-gpu, builds those tests and what they link, and runs them. Needs nvcc 12 or
# newer, g++ 12, CMake, Ninja, Eigen, nlohmann/json, xxHash, OpenSSL and doctest, and no network; whatever else is
# missing is left out of the build.
# Exits non-zero when a test fails, when none was run, and when a sanitizer found something; the summary is what it
# prints last.
#
#   QLORA_CUDNN_FRONTEND     folder of cudnn_frontend.h; without it (and cuDNN) attention runs on the library's own
#                            kernels
#   QLORA_TESTS              only the tests whose name matches this regular expression; default: all, ^cuda_
#   QLORA_SANITIZE           1: each test under compute-sanitizer as well: memcheck, racecheck, initcheck and synccheck;
#                            test cases "large: ..." and "long: ..." are left out there, since they take minutes, and
#                            those that read the driver's count of memory, which a sanitizer changes
#   QLORA_SANITIZE_SECONDS   for all of that, default 300; a single run gets 200 at most
#   QLORA_JOBS               compilers at a time; default: the number of processors
#   QLORA_ARCHITECTURES      default 90a-real; with 80-virtual the driver compiles the kernels that other cards get
#
# multi builds the program with NCCL and has `qlora train` run by one process and by several: the same bytes, a rank
# that is killed, told to stop, or hangs (tests/dist/ranks.sh), started by --gpus and, where it is there, by torchrun.
#   QLORA_RANKS              numbers of processes; default: 2, and 4 where there are as many GPUs
set -u
cd "$(dirname "$0")/.." || exit 1
. cmake/packages.sh
find_xxhash
jobs=${QLORA_JOBS:-$(nproc)}
only=${QLORA_TESTS:-^cuda_}
build="build-gpu"
started=$(date +%s)
say() { printf '\n== %s (%ss)\n' "$*" "$(($(date +%s) - started))"; }
fail() {
  say "FAILED: $*"
  exit 1
}

command -v nvidia-smi >/dev/null &&
  nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv,noheader
say "configure"
generator=
[ -f $build/CMakeCache.txt ] || generator=-GNinja
# shellcheck disable=SC2086
cmake --preset gpu $generator -DCMAKE_CUDA_ARCHITECTURES="${QLORA_ARCHITECTURES:-90a-real}" >$build.log 2>&1 || {
  cat $build.log
  fail "configure"
}
mv $build.log $build/configure.log
grep -E '^-- (qlora|  )' $build/configure.log
if [ "${1:-}" = multi ]; then
  gpus=$(nvidia-smi --list-gpus | wc -l)
  ranks=${QLORA_RANKS:-2}
  [ -n "${QLORA_RANKS:-}" ] || [ "$gpus" -lt 4 ] || ranks="2 4"
  grep -q 'yes  *NCCL' $build/configure.log || fail "NCCL was not found; NCCL_ROOT may name its folder"
  say "build"
  cmake --build $build --target qlora_program -j "$jobs" >$build/build.log 2>&1 || {
    grep -vE '^\[[0-9]+/[0-9]+\] ' $build/build.log | head -150
    fail "build"
  }
  for n in $ranks; do
    [ "$n" -le "$gpus" ] || fail "$n processes on $gpus GPUs"
    for how in gpus torchrun; do
      say "$n processes by $how"
      code=0
      QLORA_HANG=1 sh tests/dist/ranks.sh "$PWD/$build/examples/qlora" "$PWD" $how "$n" || code=$?
      [ $code = 77 ] || [ $code = 0 ] || fail "$n processes by $how"
    done
  done
  say "all passed"
  exit 0
fi
say "build"
cmake --build --preset gpu -j "$jobs" >$build/build.log 2>&1 || {
  grep -vE '^\[[0-9]+/[0-9]+\] ' $build/build.log | head -150
  fail "build"
}
grep -E 'warning|Warning' $build/build.log | sort | uniq -c | head -20

say "test"
QLORA_REQUIRE_GPU=1 ctest --preset gpu -R "$only" 2>&1 | tee $build/test.log
# CMake 3 writes "100% tests passed, 0 tests failed out of 10", CMake 4 leaves the middle out when all passed.
ran=$(sed -nE 's/^[0-9]+% tests passed,? *(([0-9]+) tests? failed )?out of ([0-9]+)$/\3 tests, \2 failed/p' \
  $build/test.log | sed 's/,  failed/, 0 failed/')
status=0
case $ran in
  *', 0 failed') ;;
  *) status=1 ;;
esac

# sanitize TOOL TEST: one line into the log TOOL.TEST.result: ok, errors, refused, cut or skipped.
cat >$build/sanitize.sh <<'END'
tool=$1 test=$2 log=$3/$1.$2.log
limit() {
  left=$((SANITIZE_UNTIL - $(date +%s)))
  [ $left -lt 200 ] || left=200
}
limit
if [ $left -lt 5 ]; then
  echo "not run: the time is spent" >"$3/$1.$2.result"
  exit 0
fi
# Allocations that fail are tested, and the library reports every failed call itself.
calls=
[ "$tool" = memcheck ] && calls='--report-api-errors no'
run() {
  # shellcheck disable=SC2086
  QLORA_REQUIRE_GPU=1 timeout $left compute-sanitizer --tool "$tool" --error-exitcode 66 $calls $SANITIZE_FILTER \
    "$1" --test-case-exclude='large:*,long:*,*driver*' >"$log" 2>&1
  rc=$?
}
run "$4"
# It loses track of a launch now and then where several threads launch at once; that says nothing about the kernel.
if grep -q 'Internal Sanitizer Error: Detected a failure to track' "$log"; then
  limit
  [ $left -lt 5 ] || run "$4"
fi
if grep -qi 'device not supported' "$log"; then
  result="refused: the sanitizer does not support this device here"
elif grep -q 'Internal Sanitizer Error' "$log"; then
  result="no result: the sanitizer failed itself, twice"
elif [ $rc = 124 ]; then
  result="cut off after ${left} s, nothing found until then"
  grep -qE '^========= (Invalid|Error: (Race|Potential)|Race|Uninitialized|Barrier|Out-of-range)' "$log" &&
    result="ERRORS, then cut off"
elif [ $rc = 0 ] && grep -q '\[doctest\] test cases:' "$log"; then
  result=ok
elif [ $rc = 0 ]; then
  result="ERRORS: nothing was run"
else
  result="ERRORS (status $rc)"
fi
echo "$result" >"$3/$1.$2.result"
END

results=$build/sanitizer
rm -rf $results
if [ "${QLORA_SANITIZE:-0}" = 1 ]; then
  say "sanitizers"
  mkdir -p $results
  if ! command -v compute-sanitizer >/dev/null; then
    PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
  fi
  if command -v compute-sanitizer >/dev/null; then
    SANITIZE_UNTIL=$(($(date +%s) + ${QLORA_SANITIZE_SECONDS:-300}))
    SANITIZE_FILTER=
    # The kernels of cuBLAS and cuDNN are NVIDIA's to check.
    compute-sanitizer --help 2>&1 | grep -q 'kernel_substring' && SANITIZE_FILTER='--kernel-name kernel_substring=qlora'
    export SANITIZE_UNTIL SANITIZE_FILTER
    # racecheck 2025.3 fails inside cuBLASLt's kernels ("failed to handle a hardware exception"), filter or not: it gets
    # the tests that are linked to plain products instead.
    cmake --build $build --target gpu_plain_tests -j "$jobs" >>$build/build.log 2>&1 || fail "build of the plain tests"
    for tool in memcheck racecheck synccheck initcheck; do
      for path in "$build"/tests/cuda_*_test; do
        name=$(basename "$path")
        echo "$name" | grep -qE "$only" || continue
        [ $tool = racecheck ] && path=$(dirname "$path")/plain_$name
        echo "$tool $name $results $path"
      done
    done | xargs -r -P 4 -L 1 sh $build/sanitize.sh
    for tool in memcheck racecheck synccheck initcheck; do
      for result in "$results/$tool".*.result; do
        case $(cat "$result") in
          ERRORS*)
            status=1
            printf '\n-- %s\n' "${result%.result}.log"
            grep -vE '^=========     (Host Frame|Saved host backtrace)' "${result%.result}.log" | head -40
            ;;
        esac
      done
    done
  else
    echo "compute-sanitizer is not here: skipped"
  fi
fi

say "summary"
echo "tests: ${ran:-none was run}"
grep -E '^ *[0-9]+/[0-9]+ Test|Skipped|Failed|Timeout' $build/test.log | grep -v ' Passed ' | sort -u
for result in "$results"/*.result; do
  [ -f "$result" ] && printf '%-40s %s\n' "$(basename "${result%.result}")" "$(cat "$result")"
done
[ $status = 0 ] || fail "see above"
say "all passed"
