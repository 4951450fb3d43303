#!/bin/sh
# `qlora serve` under abuse: 10,000 requests, clients that go in the middle, 1,000 slow clients, keys, signals, and
# bodies that are wrong in every way that the description of the server forbids:
#   sh tests/serve/abuse.sh [--short]
# Says what it measured; exits 1 where something does not hold. The test suite runs the short form.
#   QLORA_PROGRAM  the program; default: build-dev/examples/qlora
set -eu
cd "$(dirname "$0")/../.."
program=${QLORA_PROGRAM:-build-dev/examples/qlora}
[ -x "$program" ] || { echo "no program at $program: cmake --build --preset dev --target qlora_program" >&2; exit 4; }
ulimit -n 4096 2>/dev/null || true
exec python3 -B tests/serve/abuse.py "$program" examples/models/tiny-chat "$@"
