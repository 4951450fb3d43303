#!/bin/sh
# finetune.sh PREPARE FINETUNE MODEL: packs a data set, trains on it, and calls the same again.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$1" "$3" "$work/data"
first=$("$2" "$3" "$work/data" "$work/out" "What is the price of item 3?" 2>"$work/log")
cat "$work/log"
echo "answer: $first"
test -n "$first"
test -s "$work/out/adapter/adapter_model.safetensors"
test -s "$work/out/trainer_state.json"
sum=$(sha256sum <"$work/out/adapter/adapter_model.safetensors")
again=$("$2" "$3" "$work/data" "$work/out" "What is the price of item 3?" 2>"$work/log")
grep -q "resuming after step" "$work/log"
test "$again" = "$first"
test "$(sha256sum <"$work/out/adapter/adapter_model.safetensors")" = "$sum"
if "$2" "$3" "$work/nothing" "$work/out2" x 2>"$work/log"; then exit 1; fi # no data set: an error that names it
grep -q nothing "$work/log"
