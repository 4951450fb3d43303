#!/bin/sh
# What the program does when it is killed, when the disk is full or fails, and when a bit or a byte of its files
# changes:
#   sh tests/faults/run.sh [N] [KIND...]
# N faults of each kind (20), at random moments and places. Prints a table; exits 1 where a fault did harm that no error
# told of. Takes minutes, so it is no part of the test suite; docs/faults.md has a result.
#   QLORA_PROGRAM  the program; default: build-dev/examples/qlora
#   QLORA_SEED     of the random places (1)
set -eu
cd "$(dirname "$0")/../.."
program=${QLORA_PROGRAM:-build-dev/examples/qlora}
[ -x "$program" ] || { echo "no program at $program: cmake --build --preset dev --target qlora_program" >&2; exit 4; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CC:-cc}" -O1 -shared -fPIC -Wall -Wextra -Werror tests/faults/fault.c -o "$work/fault.so" -ldl
python3 tests/faults/faults.py "$program" "$work" "$@"
