#!/bin/sh
# Makes the model of this directory again, from tiny-base (the one in build/tiny-base, if make.sh there made one, else
# the shipped one), on pages and chats. 13 minutes on two cores; it can be stopped and goes on where it was. The result
# is left in build/tiny-chat.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
. "$root/examples/models/tools.sh"
base=$root/build/tiny-base
[ -f "$base/config.json" ] || base=$root/examples/models/tiny-base
train_model tiny-chat --from "$base" --kind all --lr 1e-3 --steps 1200 "$@"
