#!/bin/sh
# The quickstart: sh examples/quickstart.sh
# On a fresh Debian 12 machine: installs what is missing, builds the program, and teaches the small chat model that comes
# with it ten web pages with QLoRA: pages -> text -> windows -> NF4 -> adapter -> merged model -> base and tuned compared.
set -eu
cd "$(dirname "$0")/.."
. examples/program.sh
build_program
exec "$program" run examples/quickstart.toml "$@"
