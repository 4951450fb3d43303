#!/bin/sh
# The quickstart: sh examples/quickstart.sh
# On Debian 12: installs missing packages, builds the program, and fine-tunes tiny-chat on ten web pages with QLoRA:
# pages -> text -> windows -> NF4 -> adapter -> merged model -> comparison of base and tuned model.
set -eu
cd "$(dirname "$0")/.."
. examples/program.sh
build_program
exec "$program" run examples/quickstart.toml "$@"
