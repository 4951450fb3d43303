#!/bin/sh
# Makes the model of this directory again, from nothing: world, tokenizer, weights; from random weights, on pages alone.
# Some 35 minutes on two cores; it can be stopped and goes on where it was. The result is left in build/tiny-base.
# --seed N makes another one.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
. "$root/examples/models/tools.sh"
train_model tiny-base --kind pages --steps 4000 "$@"
