#!/bin/sh
# The quickstart: sh examples/quickstart.sh
# On Debian 12: installs missing packages, builds the program, and fine-tunes tiny-chat on ten web pages with QLoRA:
# pages -> text -> windows -> NF4 -> adapter -> merged model -> comparison of base and tuned model.
set -eu
cd "$(dirname "$0")/.."
. examples/program.sh
build_program
"$program" run examples/quickstart.toml "$@"
adapter=out/quickstart/qlora/train/adapter
if [ -d "$adapter" ] && "$program" serve --help >/dev/null 2>&1; then
  printf '\nTo ask the model before and after side by side, run this and open http://127.0.0.1:8080/ in a browser:\n'
  printf '  %s serve before=examples/models/tiny-chat --adapter after=%s\n' "$program" "$adapter"
fi
