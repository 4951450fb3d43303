#!/bin/sh
# Makes a chat model from build/tiny-base, on chats alone. The result is left in build/tiny-base-chat.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
[ -f "$root/build/tiny-base/config.json" ] || { echo "make_chat.sh: run make.sh first" >&2; exit 2; }
. "$root/examples/models/tiny-base/tools.sh"
train_model "$root/examples/models/tiny-chat/tokenizer_config.json" "$root/build/tiny-base-chat" \
  --from "$root/build/tiny-base" --kind chats --lr 1e-3 --steps 1427 "$@"
