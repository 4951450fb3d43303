#!/bin/sh
# Compile time and object size: CPU seconds for qlora/llama2.hpp alone (goal 2 s), for one trainer (goal 15 s), and what
# a second LoRA config adds to it. Best of RUNS (default 3); JSON on stdout.
#   sh bench/compile.sh           CXX and CXXFLAGS are used if set
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cxx=${CXX:-g++}
flags=${CXXFLAGS:--O2 -march=native}
runs=${RUNS:-3}
eigen=$(pkg-config --cflags-only-I eigen3 | sed 's/-I/-isystem /g')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/door.cpp" <<'END'
#include <qlora/llama2.hpp>
END
cat >"$work/trainer.cpp" <<'END'
#include <qlora/llama2.hpp>
constexpr qlora::Config config{.shape = {1536, 256, 4, 8, 4, 32, 704}, .lora = {.rank = 64}};
template class qlora::Trainer<config, qlora::Cpu<float>>;
END
cat "$work/trainer.cpp" - >"$work/second.cpp" <<'END'
constexpr qlora::Config second = config.with(qlora::Lora{.rank = 8, .targets = qlora::Proj::q | qlora::Proj::v});
template class qlora::Trainer<second, qlora::Cpu<float>>;
END

# measure NAME: prints "milliseconds bytes"; bytes is the sum of text, data and bss.
measure() {
  best=
  for _ in $(seq "$runs"); do
    # Processor time (user and system) of the compiler, so that a busy machine changes it little.
    # shellcheck disable=SC2086
    # The pipe would hide a compiler that fails.
    ($cxx -std=c++20 $flags -I"$root/include" -I"$root/configs" $eigen -c "$work/$1.cpp" -o "$work/$1.o" && times) \
      >"$work/times" || return 1
    took=$(
      awk 'NR == 2 {
        split($1, u, /[ms]/); split($2, y, /[ms]/)
        printf "%d", 1000 * (60 * (u[1] + y[1]) + u[2] + y[2])
      }' "$work/times"
    )
    if [ -z "$best" ] || [ "$took" -lt "$best" ]; then best=$took; fi
  done
  echo "$best $(size "$work/$1.o" | awk 'NR == 2 { print $4 }')"
}

door=$(measure door)
trainer=$(measure trainer)
second=$(measure second)
compiler=$($cxx -dumpfullversion)
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
printf '%s\n%s\n%s\n' "$door" "$trainer" "$second" |
  awk -v compiler="$compiler" -v flags="$flags" -v machine="$machine" '
  { ms[NR] = $1; bytes[NR] = $2 }
  END {
    printf "{\n  \"compiler\": \"%s\",\n  \"flags\": \"%s\",\n  \"machine\": \"%s\",\n", compiler, flags, machine
    printf "  \"door\": {\"seconds\": %.2f, \"bytes\": %d, \"goal_seconds\": 2},\n", ms[1] / 1000, bytes[1]
    printf "  \"trainer\": {\"seconds\": %.2f, \"bytes\": %d, \"goal_seconds\": 15},\n", ms[2] / 1000, bytes[2]
    printf "  \"second_lora_config\": {\"added_seconds\": %.2f, \"added_bytes\": %d}\n}\n", \
      (ms[3] - ms[2]) / 1000, bytes[3] - bytes[2]
  }'
