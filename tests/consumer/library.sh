#!/bin/sh
# library.sh MODEL: runs the programs of docs/library.md, which lie in the current folder, on a model.
set -eu
model=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
expect() { # expect TEXT REGEX
  printf '%s\n' "$1" | grep -Eq -- "$2" || { printf 'expected %s, found:\n%s\n' "$2" "$1"; exit 1; }
}
expect "$(./own_config)" "weights; adapters on self_attn.q_proj, self_attn.v_proj"
expect "$(./generate "$model")" "^[0-9]+ tokens"
losses=$(./train "$model" "$work/adapter" | awk '{ print $2 }')
printf '%s\n' "$losses" | awk 'NR == 1 { first = $1 } { last = $1 } END { exit !(NR > 8 && last < 0.7 * first) }' ||
  { printf 'the loss does not fall:\n%s\n' "$losses"; exit 1; }
expect "$(cat "$work/adapter/adapter_config.json")" '"r": 8'
expect "$(./resume "$model" "$work/checkpoints")" "the same loss"
expect "$(./adapter "$model" "$work/adapter")" "^base:"
[ "$(./adapter "$model" "$work/adapter" | cut -d: -f1 | tr '\n' ' ')" = "tuned half base " ]
[ "$(./chat "$model" | grep -c '^> ')" = 2 ]
# What the adapter was trained on moves further from the base than other text.
./kl "$model" "$work/adapter" | tee "$work/kl"
awk '{ exit !($5 > $9 && $9 > 0) }' "$work/kl"
expect "$(./schedule "$model")" "^1  lr 0\.002 "
expect "$(./schedule "$model")" "^ +first layer [0-9.e-]+$"
expect "$(./threads "$model")" "4 equal replies"
expect "$(./plan)" "^H100 80 GB: 13B trains"
