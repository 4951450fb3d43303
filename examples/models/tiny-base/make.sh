#!/bin/sh
# Makes a completion model of tiny-chat's world: from random weights, on pages alone. The result is left in
# build/tiny-base. It can be stopped and goes on where it was; --seed N makes another one.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
. "$root/examples/models/tiny-base/tools.sh"
train_model "$root/examples/models/tiny-base/tokenizer_config.json" "$root/build/tiny-base" --kind pages "$@"
